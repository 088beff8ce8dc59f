"""The selector against `scipy.optimize.milp`: within 0.1% of the optimum, never above it.

The solver's own gap is 1e-6, the margin allowed above its value.
"""

from random import Random
from typing import Any

import numpy as np
import pytest

from greentrainer.cost.trace import trace
from greentrainer.select import select
from greentrainer.types import CostGraph
from tests.conformance.families import FAMILIES, batch_for, build
from tests.graphs import (
    COSTS,
    SHAPES,
    Builder,
    encoder_decoder,
    importance_of,
    milp_optimum,
    mixture_of_experts,
    noisy,
    transformer,
)


def assert_near_optimal(graph: CostGraph, importance: dict[str, float], budget: float) -> None:
    found = select(graph, importance, budget)
    optimum = milp_optimum(graph, importance, budget)
    assert found.backward_flops == graph.backward_flops(found.names) <= budget
    assert optimum * (1 - 1e-3) <= found.importance <= optimum * (1 + 2e-6)


def budgets(graph: CostGraph, shares: tuple[float, ...]) -> list[float]:
    """From the cheapest tensor (share 0) to all tensors (share 1)."""
    least, most = min(graph.closure_flops.values()), graph.full_backward_flops
    return [least + share * (most - least) for share in shares]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("costs", COSTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_random_graphs(shape: str, costs: str, seed: int) -> None:
    random = Random(f"{shape} {costs} {seed}")
    graph = SHAPES[shape](random.randint(20, 80), random, COSTS[costs](random))
    importance = importance_of(graph, seed)
    importance[graph.tensors[0]] = 0.01  # something to take, however small the budget
    for budget in budgets(graph, (0.1, 0.3, 0.6, 0.9)):
        if any(importance[name] > 0 for name in graph.affordable(budget)):
            assert_near_optimal(graph, importance, budget)


@pytest.mark.parametrize("seed", range(4))
def test_graphs_of_no_particular_shape(seed: int) -> None:
    """Each node below one to three random ones: far more states than are kept."""
    random = Random(seed)
    cost, builder = noisy(random), Builder()
    for node in range(1, 26):
        builder.node(random.sample(range(node), min(node, random.choice((1, 2, 3)))), cost())
    for _ in range(40):
        builder.leaf(random.sample(range(26), random.choice((1, 1, 2, 3))), cost())
    graph = builder.graph()
    for budget in budgets(graph, (0.2, 0.5)):
        assert_near_optimal(graph, importance_of(graph, seed, negative=0.0), budget)


@pytest.mark.parametrize("rho", [0.4, 0.5, 0.7])
@pytest.mark.parametrize("noise", [None, Random(0)], ids=["equal blocks", "no two costs equal"])
def test_a_transformer_of_full_size(noise: Random | None, rho: float) -> None:
    graph = transformer(noise=noise)
    assert_near_optimal(graph, importance_of(graph, 1), graph.backward_budget(rho))


@pytest.mark.parametrize("rho", [0.45, 0.7])
def test_a_mixture_of_experts(rho: float) -> None:
    graph = mixture_of_experts(blocks=4, experts=8, noise=Random(0))
    assert_near_optimal(graph, importance_of(graph, 2), graph.backward_budget(rho))


@pytest.mark.parametrize("rho", [0.45, 0.7])
def test_an_encoder_and_a_decoder(rho: float) -> None:
    graph = encoder_decoder(blocks=12, noise=Random(0))
    assert_near_optimal(graph, importance_of(graph, 2), graph.backward_budget(rho))


def assert_near_optimal_at_every_budget(graph: CostGraph, importance: dict[str, float]) -> None:
    for budget in budgets(graph, (0.05, 0.2, 0.4, 0.7, 0.95)):
        if any(importance[name] > 0 for name in graph.affordable(budget)):
            assert_near_optimal(graph, importance, budget)


@pytest.mark.parametrize("family", FAMILIES)
def test_real_models(family: str) -> None:
    attention = "eager" if family == "bloom" else "sdpa"
    graph = trace(build(family, attention), batch_for(family))
    assert bool(graph.variants) == (family in ("t5", "flan-t5", "t5-checkpointed"))
    assert_near_optimal_at_every_budget(graph, importance_of(graph, 0))
    assert_near_optimal_at_every_budget(graph, heavy_tailed(graph, 1))


def heavy_tailed(graph: CostGraph, seed: int) -> dict[str, float]:
    """Half negative; of the rest a few tensors outweigh all others."""
    sizes = np.random.default_rng(seed).standard_cauchy(len(graph.tensors)) ** 3
    return dict(zip(graph.tensors, sizes.tolist(), strict=True))


def test_a_model_that_demands_gradients_at_its_inputs() -> None:
    """Every selection pays the way down to the embeddings; the rest is chosen as ever."""
    model: Any = build("llama-checkpointed", "sdpa")
    model.enable_input_require_grads()
    graph = trace(model, batch_for("llama"))
    assert graph.forced
    assert_near_optimal_at_every_budget(graph, importance_of(graph, 0))
