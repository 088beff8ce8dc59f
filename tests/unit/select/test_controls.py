"""The controls: same budget, filled as well as it can be, and each by its own score."""

from dataclasses import fields, replace
from random import Random

import pytest

from greentrainer.select import (
    CONTROLS,
    control_selection,
    random_selection,
    scores,
    select,
    top_layers,
)
from greentrainer.types import CostGraph, Selection, TensorStatistics
from tests.graphs import Builder, noisy, series_parallel, transformer

GRAPHS = {
    "transformer": transformer(blocks=6),
    "series_parallel": series_parallel(40, Random(1), noisy(Random(1))),
}


def statistics(graph: CostGraph, seed: int) -> dict[str, TensorStatistics]:
    random = Random(seed)
    return {n: TensorStatistics(*(random.random() for _ in range(4))) for n in graph.tensors}


def assert_full(graph: CostGraph, found: Selection, budget: float) -> None:
    """Within budget by the true cost, in order, and no tensor left out would still fit."""
    assert found.backward_budget == budget
    assert found.backward_flops == graph.backward_flops(found.names) <= budget
    assert list(found.names) == [n for n in graph.tensors if n in set(found.names)]
    for name in set(graph.tensors) - set(found.names):
        assert graph.backward_flops([*found.names, name]) > budget


@pytest.mark.parametrize("rho", [0.45, 0.6, 0.9])
@pytest.mark.parametrize("graph", GRAPHS.values(), ids=GRAPHS)
def test_random_and_top_fill_the_budget(graph: CostGraph, rho: float) -> None:
    budget = graph.backward_budget(rho)
    for seed in range(3):
        assert_full(graph, random_selection(graph, budget, seed), budget)
    assert_full(graph, top_layers(graph, budget), budget)


def test_random_depends_on_the_seed_alone() -> None:
    graph = GRAPHS["transformer"]
    budget = graph.backward_budget(0.5)
    draws = [random_selection(graph, budget, seed).names for seed in range(8)]
    assert draws == [random_selection(graph, budget, seed).names for seed in range(8)]
    assert len(set(draws)) == 8


def test_top_layers_takes_all_tensors_above_the_first_that_does_not_fit() -> None:
    graph = GRAPHS["transformer"]
    budget = graph.backward_budget(0.6)
    chosen = top_layers(graph, budget).names
    prefix = next(i for i, n in enumerate(graph.tensors) if n not in chosen)
    assert graph.backward_flops(graph.tensors[: prefix + 1]) > budget
    blocks = {int(name.split(".")[0]) for name in chosen if name[0].isdigit()}
    assert blocks == set(range(min(blocks), 6))
    assert 0 < min(blocks) < 5


def test_a_graph_that_changes_with_what_is_trained_is_filled_by_its_true_cost() -> None:
    """While "mask" is frozen the other tensors are cheaper, as with attention that has a mask."""
    dear, cheap = Builder(), Builder()
    for i in range(4):
        dear.leaf([0], 5, f"t{i}")
        cheap.leaf([0], 3, f"t{i}")
    dear.leaf([0], 0, "mask")
    variants = ((frozenset({"mask"}), cheap.graph()),)
    plain = dear.graph()
    graph = CostGraph(plain.parents, plain.costs, plain.leaves, plain.sizes, 1, variants=variants)
    found = top_layers(graph, 10)
    assert (found.names, found.backward_flops) == (("t0", "t1", "t2"), 9)
    for seed in range(8):
        assert_full(graph, random_selection(graph, 10, seed), 10)


@pytest.mark.parametrize(
    ("control", "field"),
    [
        ("gradient_magnitude", "gradient_norm"),
        ("weight_magnitude", "weight_norm"),
        ("fisher", "squared_gradient"),
        ("snip", "gradient_weight"),
    ],
)
def test_each_score_control_selects_by_its_own_statistic(control: str, field: str) -> None:
    graph = GRAPHS["transformer"]
    measured = statistics(graph, 0)
    budget = graph.backward_budget(0.5)
    found = control_selection(control, graph, measured, budget)
    own = {name: getattr(tensor, field) for name, tensor in measured.items()}
    assert found == select(graph, own, budget)
    others = [f.name for f in fields(TensorStatistics) if f.name != field]
    for other in others:
        assert (
            found.names
            != select(graph, {n: getattr(t, other) for n, t in measured.items()}, budget).names
        )


def test_every_control_is_named_in_the_error_for_an_unknown_one() -> None:
    with pytest.raises(ValueError, match="no control 'magnitude': choose one of") as error:
        scores("magnitude", {})
    assert all(control in str(error.value) for control in CONTROLS)


def test_an_infeasible_budget_is_an_error() -> None:
    graph = GRAPHS["transformer"]
    budget = 0.999 * min(graph.closure_flops.values())
    with pytest.raises(ValueError, match="smallest feasible rho"):
        random_selection(graph, budget, 0)
    with pytest.raises(ValueError, match="smallest feasible rho"):
        top_layers(graph, budget)


def test_a_control_that_finds_nothing_in_any_variant_is_an_error() -> None:
    dear, cheap = Builder(), Builder()
    cheap.leaf([0], 1, "near")
    cheap.leaf([0], 50, "mask")
    dear.leaf([0], 10, "near")
    graph = replace(cheap.graph(), variants=((frozenset({"mask"}), dear.graph()),))
    with pytest.raises(ValueError, match="smallest feasible rho"):
        top_layers(graph, 9)
    assert top_layers(graph, 10).names == ("near",)
