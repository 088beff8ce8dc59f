"""The bound on the optimum, against all subsets and the graph's own costs."""

import pytest
from hypothesis import given, settings

from greentrainer.select import optimum_at_most, select
from greentrainer.types import CostGraph
from tests.graphs import (
    brute_force,
    importance_of,
    small_graphs,
    small_instances,
    small_variants,
    transformer,
)

Instance = tuple[CostGraph, dict[str, float], int]


@settings(max_examples=300, deadline=None)
@given(small_instances(small_graphs()))
def test_on_small_graphs_the_bound_is_the_optimum(instance: Instance) -> None:
    found = brute_force(*instance)
    bound = optimum_at_most(*instance)
    assert bound == pytest.approx(found[0] if found else 0.0)  # summed in another order


@settings(max_examples=300, deadline=None)
@given(small_instances(small_variants()))
def test_no_selection_is_worth_more_with_variants_and_forced_nodes(instance: Instance) -> None:
    found, bound = brute_force(*instance), optimum_at_most(*instance)
    assert bound is not None
    assert found is None or found[0] <= bound + 1e-9 * abs(bound)


def test_on_a_model_the_selection_is_proven() -> None:
    graph = transformer(blocks=6)
    importance = importance_of(graph, 0)
    budget = 0.4 * graph.full_backward_flops
    found = select(graph, importance, budget)
    bound = optimum_at_most(graph, importance, budget, found.importance)
    assert bound == pytest.approx(found.importance)
    loose = optimum_at_most(graph, importance, budget)
    assert loose is not None
    assert loose >= found.importance * (1 - 1e-9)


@settings(max_examples=100, deadline=None)
@given(small_graphs())
def test_own_flops_are_what_leaving_a_tensor_out_saves(graph: CostGraph) -> None:
    for name in graph.tensors:
        others = [other for other in graph.tensors if other != name]
        saved = graph.backward_flops() - graph.backward_flops(others)
        assert graph.own_flops[name] == saved
