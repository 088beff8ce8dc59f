"""The selector: exact on small instances, within budget, deterministic, quick, and clear errors."""

import math
import re
from collections.abc import Mapping
from itertools import combinations
from random import Random
from time import process_time

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from greentrainer.select import programme, select, states
from greentrainer.select.bounds import bounds_of
from greentrainer.select.frontier import Front, Part, Trace, merge, origin, taken, thin, undominated
from greentrainer.select.knapsack import selection
from greentrainer.select.reduce import reduce
from greentrainer.select.states import steps_of
from greentrainer.types import CostGraph, Selection, ancestors
from tests.graphs import (
    Builder,
    brute_force,
    encoder_decoder,
    importance_of,
    mixture_of_experts,
    noisy,
    series_parallel,
    small_graphs,
    small_instances,
    small_variants,
    transformer,
)

Instance = tuple[CostGraph, dict[str, float], int]
PLAIN = small_instances(small_graphs())
VARIED = small_instances(small_variants())


def selected(graph: CostGraph, importance: Mapping[str, float], budget: float) -> Selection | None:
    try:
        return select(graph, importance, budget)
    except ValueError:
        return None


# Against all subsets


@settings(max_examples=400, deadline=None)
@given(PLAIN)
def test_equals_brute_force(instance: Instance) -> None:
    """The greatest value, and of the selections that reach it the cheapest."""
    found = selected(*instance)
    assert (found and (found.importance, found.backward_flops)) == brute_force(*instance)


@settings(max_examples=400, deadline=None)
@given(VARIED)
def test_equals_brute_force_with_variants_and_forced_nodes(instance: Instance) -> None:
    found = selected(*instance)
    assert (found and (found.importance, found.backward_flops)) == brute_force(*instance)


@settings(max_examples=100, deadline=None)
@given(small_graphs())
def test_the_reduced_problem_prices_every_subset_as_the_graph_does(graph: CostGraph) -> None:
    problem = reduce(graph, dict.fromkeys(graph.tensors, 1.0), bytearray(len(graph.costs)))
    place = {name: node for node, names in enumerate(problem.names) for name in names}
    assert set(place) == set(graph.tensors)
    for size in (1, 2, 3):
        for names in combinations(graph.tensors, size):
            active = ancestors(problem.parents, [place[name] for name in names])
            price = sum(c for c, on in zip(problem.costs, active, strict=True) if on)
            assert price == graph.backward_flops(names)


@settings(max_examples=100, deadline=None)
@given(PLAIN)
def test_no_selection_exceeds_the_lagrangian_bound(instance: Instance) -> None:
    graph, importance, budget = instance
    best = brute_force(graph, importance, budget)
    candidates = {n: v for n, v in importance.items() if v > 0}
    assume(best is not None and budget)
    assert best is not None
    problem = reduce(graph, candidates, bytearray(len(graph.costs)))
    steps = steps_of(problem, 1.0)
    bounds = bounds_of(problem, steps, budget)
    first = merge([Part(origin(), 0, problem.costs[0], problem.profits[0])], budget)
    skipped = 0.0 if problem.costs[0] else -math.inf  # a free root is never skipped
    reach = bounds.of(first, 0, int(steps[0].take[0])).max(initial=skipped)
    assert reach >= best[0] - 1e-9  # rounding of sums of a few small numbers


# Invariants


@settings(max_examples=100, deadline=None)
@given(VARIED, st.randoms(use_true_random=False))
def test_deterministic_whatever_the_order_of_importance(instance: Instance, random: Random) -> None:
    graph, importance, budget = instance
    shuffled = list(importance.items())
    random.shuffle(shuffled)
    assert selected(graph, importance, budget) == selected(graph, dict(shuffled), budget)


@pytest.mark.parametrize("seed", range(6))
def test_within_budget_and_in_order_even_when_cut_short(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With tiny fronts and hardly any states the result gets worse, not wrong."""
    graph = series_parallel(40, Random(seed), lambda: 1 + Random(seed).randrange(10**9))
    importance = importance_of(graph, seed)
    budget = 0.4 * graph.full_backward_flops
    exact = select(graph, importance, budget)
    monkeypatch.setattr(programme, "FIRST_CAP", 3)
    monkeypatch.setattr(programme, "POINTS", 0)
    monkeypatch.setattr(states, "MOST_STATES", 2)
    short = select(graph, importance, budget)
    assert 0.5 * exact.importance < short.importance <= exact.importance * (1 + 1e-12)
    for found in (exact, short):
        assert found == selection(graph, importance, found.names, budget)
        assert found.backward_flops <= budget
        assert all(importance[name] > 0 for name in found.names)
        positions = [graph.tensors.index(name) for name in found.names]
        assert positions == sorted(set(positions))


def test_worthless_tensors_stay_out_though_they_are_free() -> None:
    build = Builder()
    for name in ("good", "zero", "bad", "unmeasured"):
        build.leaf([0], 0, name)
    found = select(build.graph(), {"good": 1.0, "zero": 0.0, "bad": -1.0}, 10.0)
    assert found.names == ("good",)


def test_of_equal_tensors_the_one_closer_to_the_loss_is_taken() -> None:
    build = Builder()
    for i in range(6):
        build.leaf([0], 5, f"t{i}")
    found = select(build.graph(), {f"t{i}": 1.0 for i in reversed(range(6))}, 14.0)
    assert found.names == ("t0", "t1")


def test_everything_when_the_budget_allows_it() -> None:
    graph = transformer(blocks=2)
    found = select(graph, dict.fromkeys(graph.tensors, 1.0), graph.backward_budget(1.0))
    assert found.names == graph.tensors
    assert select(graph, dict.fromkeys(graph.tensors, 1.0), math.inf).names == graph.tensors


def test_costs_beyond_the_precision_of_floats_are_exact() -> None:
    build = Builder()
    build.leaf([0], 2**60 + 1, "dear")
    build.leaf([0], 2**60, "cheap")
    importance = {"dear": 2.0, "cheap": 1.0}
    assert select(build.graph(), importance, 2**60).names == ("cheap",)
    assert select(build.graph(), importance, 2**60 + 1).names == ("dear",)


def test_scale_of_importance_does_not_matter() -> None:
    graph = transformer(blocks=6, noise=Random(0))
    importance = importance_of(graph, 0)
    tiny = {name: value * 2.0**-100 for name, value in importance.items()}
    budget = graph.backward_budget(0.6)
    assert select(graph, tiny, budget).names == select(graph, importance, budget).names


# Errors: one line that says what to change


def test_an_infeasible_budget_names_the_smallest_rho() -> None:
    graph = transformer(blocks=2)
    importance = dict.fromkeys(graph.tensors, 1.0)
    for budget in (0.0, -1.0, math.nan, graph.backward_budget(0.999 * graph.smallest_rho())):
        with pytest.raises(ValueError, match=r"smallest feasible rho is") as error:
            select(graph, importance, budget)
        named = re.search(r"rho is ([0-9.]+)$", str(error.value))
        assert named is not None
        assert graph.smallest_rho() <= float(named[1]) < graph.smallest_rho() + 1e-4
        assert select(graph, importance, graph.backward_budget(float(named[1]))).names


@pytest.mark.parametrize(
    ("importance", "message"),
    [
        ({"near": 0.0, "far": 1.0}, "none of the 1 affordable tensors has a positive importance"),
        ({}, "none of the 1 affordable tensors has a positive importance"),
        ({"near": math.nan}, "importance of tensor 'near' is nan"),
        ({"near": math.inf}, "importance of tensor 'near' is inf"),
        ({"near": 1.0, "head": 1.0}, "names a tensor 'head' that is not in the cost graph"),
    ],
)
def test_errors(importance: dict[str, float], message: str) -> None:
    build = Builder()
    build.leaf([0], 1, "near")
    build.leaf([build.node([0], 5)], 1, "far")
    with pytest.raises(ValueError, match=message) as error:
        select(build.graph(), importance, 4.0)
    assert "\n" not in str(error.value)


# States and fronts


@pytest.mark.parametrize(
    ("graph", "most"),
    [
        (transformer(blocks=4), 2),
        (encoder_decoder(), 2),
        (mixture_of_experts(blocks=3, experts=6), 4),
        (series_parallel(300, Random(2), noisy(Random(2))), 10),
    ],
    ids=["transformer", "encoder and decoder", "mixture of experts", "nested"],
)
def test_a_handful_of_states_is_enough(graph: CostGraph, most: int) -> None:
    """Nesting alone adds states: neither depth nor the number of parallel branches does."""
    problem = reduce(graph, dict.fromkeys(graph.tensors, 1.0), bytearray(len(graph.costs)))
    assert max(len(step.live) for step in steps_of(problem, 0.0)) <= most


def naive_front(points: list[tuple[int, int]]) -> list[tuple[int, int]]:
    return sorted(
        {
            (cost, value)
            for cost, value in points
            if not any((c <= cost and v > value) or (c < cost and v >= value) for c, v in points)
        }
    )


points_lists = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), min_size=1)


@given(points_lists)
def test_undominated_points_are_those_that_no_point_beats(points: list[tuple[int, int]]) -> None:
    cost = np.array([c for c, _ in points])
    value = np.array([float(v) for _, v in points])
    index = undominated(cost, value)
    assert [points[i] for i in index] == naive_front(points)
    assert [points.index(points[i]) for i in index] == index.tolist()  # the first of equals


@given(st.sets(st.integers(0, 10**6), min_size=8, max_size=60), st.integers(2, 7), st.data())
def test_thinning_keeps_the_most_promising_point_of_each_interval(
    costs: set[int], cap: int, data: st.DataObject
) -> None:
    size = len(costs)
    cost, merit = np.array(sorted(costs)), np.array([data.draw(st.floats(0, 1)) for _ in costs])
    front = Front(cost, np.arange(size, dtype=float), Trace(np.arange(size, dtype=np.int32), ()))
    scale = (cap - 1) / (cost[-1] - cost[0])
    intervals: dict[int, list[int]] = {}
    for point in range(size):
        interval = min(int((cost[point] - cost[0]) * scale), cap - 2)
        intervals.setdefault(interval, []).append(point)
    expected = {max(points, key=lambda p: merit[p]) for points in intervals.values()} | {size - 1}
    kept = thin(front, merit, cap)
    assert kept.trace.origin.tolist() == sorted(expected)
    assert kept.value.tolist() == sorted(expected)
    assert len(kept.cost) <= cap


def test_a_point_remembers_what_was_taken() -> None:
    front = origin()
    for node, (cost, value) in enumerate([(2, 3.0), (3, 4.0), (4, 5.0), (5, 6.0)]):
        front = merge([Part(front), Part(front, node, cost, value)], 5)
    assert front.cost.tolist() == [0, 2, 3, 4, 5]
    assert sorted(taken(front, len(front.cost) - 1)) == [0, 1]  # 7.0 for 5; node 3 gives 6.0


# Speed: three times what DESIGN section 3 promises, in processor time as machines may be busy


@pytest.mark.parametrize("rho", [0.4, 0.5, 0.7, 0.9])
def test_opt_2_7b_takes_a_fraction_of_a_second(rho: float) -> None:
    graph = transformer()
    assert len(graph.tensors) == 516
    importance = importance_of(graph, 0)
    start = process_time()
    found = select(graph, importance, graph.backward_budget(rho))
    assert process_time() - start < 0.3
    assert found.backward_flops > 0.98 * found.backward_budget


def test_twenty_thousand_tensors_take_seconds() -> None:
    graph = mixture_of_experts(noise=Random(0))
    assert len(graph.tensors) > 20_000
    importance = importance_of(graph, 0)
    start = process_time()
    found = select(graph, importance, graph.backward_budget(0.7))
    assert process_time() - start < 15
    assert found.backward_flops > 0.999 * found.backward_budget
