"""Clocks: rates found again, graphs priced as their seconds, and what a tensor's own cost is."""

from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greentrainer.budget import Clock, load_clock
from greentrainer.budget.clock import NANO, TimedPass, Work, fit, work_of
from greentrainer.cost.trace import trace
from greentrainer.types import CostGraph
from tests.conformance.families import FAMILIES, batch_for, build
from tests.graphs import small_graphs
from tests.tiny import refusal

CLOCK = Clock(3e-9, 5e-9, 2e-9, 7e-9, 3e-9, "a device")


def passed(clock: Clock, work: Work) -> TimedPass:
    backward = clock.weight * work.weight + clock.activation * work.activation
    return TimedPass(work, clock.forward * work.forward, backward)


def whole() -> CostGraph:
    return trace(build("opt").train(), batch_for("opt"))


def test_rates_are_found_again_from_passes_without_noise() -> None:
    graph = whole()
    chosen = [graph.tensors, graph.tensors[:9], graph.tensors[-1:]]
    passes = [passed(CLOCK, work_of(graph, names)) for names in chosen]
    found = fit(passes, graph, CLOCK.update, "a device")
    for name in ("forward", "weight", "activation"):
        assert getattr(found, name) == pytest.approx(getattr(CLOCK, name), rel=1e-9)
    assert found.deviation < 1e-9
    full = found.full(graph.full_flops, 1, sum(graph.sizes.values()))
    assert full == pytest.approx(found.seconds(graph), rel=1e-9)


def test_no_rate_is_below_zero() -> None:
    graph = whole()
    work = work_of(graph)
    odd = [
        TimedPass(work, 1.0, 1.0),
        TimedPass(work_of(graph, graph.tensors[-1:]), 1.0, 3.0),
    ]
    found = fit(odd, graph, 0.0, "")
    assert found.weight == 0
    assert found.activation > 0


@pytest.mark.parametrize("family", ["opt", "t5", "llama", "bloom"])
def test_a_priced_graph_costs_what_the_clock_says(family: str) -> None:
    graph = trace(build(family).train(), batch_for(family))
    priced = CLOCK.price(graph)
    chance = Random(0)
    for _ in range(20):
        names = chance.sample(graph.tensors, chance.randint(1, len(graph.tensors)))
        told = (priced.forward_flops + priced.backward_flops(names)) / NANO
        assert told == pytest.approx(CLOCK.seconds(graph, names), abs=len(graph.costs) / NANO)


def test_the_optimizer_s_part_is_shared_by_batches_of_a_step() -> None:
    graph = whole()
    one, four = (CLOCK.per_batch(n).seconds(graph) for n in (1, 4))
    elements = sum(graph.sizes.values())
    assert one - four == pytest.approx(0.75 * CLOCK.update * elements)


@given(small_graphs(), st.data())
def test_a_tensor_s_own_flops_are_what_leaving_it_out_saves(
    graph: CostGraph, data: st.DataObject
) -> None:
    names = list(graph.tensors)
    left = data.draw(st.sampled_from(names))
    rest = [name for name in names if name != left]
    assert graph.own_flops[left] == graph.backward_flops() - graph.backward_flops(rest)


@pytest.mark.parametrize("family", [name for name in ("opt", "t5", "gpt2") if name in FAMILIES])
def test_weights_and_activations_make_up_a_backward_pass(family: str) -> None:
    graph = trace(build(family).train(), batch_for(family))
    work = work_of(graph)
    assert work.weight == sum(graph.own_flops.values()) > 0
    assert work.weight + work.activation == graph.full_backward_flops


def test_a_clock_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "clocks" / "one.json"
    CLOCK.save(path)
    assert load_clock(path) == CLOCK
    path.write_text('{"forward": 1}')
    with refusal("calibrat"):
        load_clock(path)
