"""Importance and statistics against a naive loop: copy everything, take a real step, sum.

The reference holds a float64 copy of the model and steps a new optimizer of the same class, loaded
with the same state, on all tensors at once.
"""

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import astuple
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim import Optimizer

from greentrainer.importance import measure_importance, measure_statistics
from greentrainer.types import Batch, LossFn, loss_of
from tests.conformance.families import FAMILIES, batch_for, build

Make = Callable[[Iterable[Any]], Optimizer]

EXACT, NOTHING = 1e-12, 1e-20
"""Both sides run the same float64 operations and differ in the order of the last sum only: 3e-15
was the worst seen, and 1e-24 where an importance is 0 but for rounding (keys' biases)."""

METRICS = ["first_order", "two_pass"]
OPTIMIZERS: dict[str, Make] = {
    "sgd": partial(torch.optim.SGD, lr=1e-2),
    "momentum": partial(torch.optim.SGD, lr=1e-2, momentum=0.9, nesterov=True, weight_decay=0.1),
    "adamw": partial(torch.optim.AdamW, lr=1e-3, weight_decay=0.1),
    "adamw-fused": partial(torch.optim.AdamW, lr=1e-3, weight_decay=0.1, fused=True),
    "adamw-foreach": partial(torch.optim.AdamW, lr=1e-3, amsgrad=True, foreach=True),
    "adafactor": partial(torch.optim.Adafactor, lr=1e-2, eps=(1e-8, 1e-3)),  # else by precision
}
DOUBLE = sorted(FAMILIES.keys() - {"mixtral"})
"""Families that run in float64: the grouped matrix product of Mixtral's experts does not."""

NOT_ALONE = (Optimizer, torch.optim.LBFGS, torch.optim.SparseAdam)
ALL_CLASSES = [
    kind
    for kind in vars(torch.optim).values()
    if isinstance(kind, type) and issubclass(kind, Optimizer) and kind not in NOT_ALONE
]
"""Every optimizer of torch but those that need a closure or sparse gradients."""


def grouped(model: nn.Module) -> list[dict[str, Any]]:
    """Two param groups, so that a tensor measured with another group's options is found out."""
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    return [{"params": matrices}, {"params": vectors, "lr": 3e-3, "weight_decay": 0.0}]


def gradients_of(
    model: nn.Module, batch: Batch, loss_fn: LossFn | None = None
) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss_of(model, batch, loss_fn).backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def naive(
    model: nn.Module,
    batches: Sequence[Batch],
    optimizer: Optimizer,
    make: Make,
    metric: str,
    loss_fn: LossFn | None = None,
) -> dict[str, float]:
    """The definition of importance, at the price of whole copies."""
    total = {name: 0.0 for name, p in model.named_parameters() if p.requires_grad}
    for batch in batches:
        twin = copy.deepcopy(model).double()
        stepped = make(grouped(twin))
        stepped.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        gradients = gradients_of(twin, batch, loss_fn)
        old = {name: p.detach().clone() for name, p in twin.named_parameters()}
        stepped.step()
        if metric == "two_pass":
            gradients = gradients_of(twin, batch, loss_fn)
        for name, parameter in twin.named_parameters():
            if name in gradients:
                change = parameter.detach() - old[name]
                total[name] -= float((change * gradients[name]).sum()) / len(batches)
    return total


def trained(family: str, make: Make, steps: int) -> tuple[nn.Module, Optimizer]:
    """A float64 model in training mode, after some real steps."""
    model = build(family).double().train()
    optimizer = make(grouped(model))
    torch.manual_seed(0)
    for seed in range(steps):
        gradients_of(model, batch_for(family, seed=100 + seed))
        optimizer.step()
    return model, optimizer


def assert_equal_to_naive(family: str, make: Make, steps: int, metric: str) -> None:
    model, optimizer = trained(family, make, steps)
    batches = [batch_for(family, seed=seed, length=8 + 4 * seed) for seed in range(3)]
    torch.manual_seed(1)  # dropout is on: both sides must draw the same masks
    measured = measure_importance(model, batches, optimizer, metric=metric)
    torch.manual_seed(1)
    expected = naive(model, batches, optimizer, make, metric)
    assert measured == pytest.approx(expected, rel=EXACT, abs=NOTHING)
    assert max(map(abs, measured.values())) > 1e-6


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("steps", [0, 3])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_importance_is_the_naive_one(kind: str, steps: int, metric: str) -> None:
    assert_equal_to_naive("opt", OPTIMIZERS[kind], steps, metric)


@pytest.mark.parametrize("family", DOUBLE)
def test_importance_is_the_naive_one_for_every_family(family: str) -> None:
    metric = METRICS[len(family) % 2]
    assert_equal_to_naive(family, OPTIMIZERS["adamw"], 1, metric)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_in_single_precision_importance_is_the_naive_one_to_rounding(
    kind: str, metric: str
) -> None:
    make, batches = OPTIMIZERS[kind], [batch_for("llama", seed=seed) for seed in range(2)]
    model = build("llama").eval()
    optimizer = make(grouped(model))
    for batch in batches:
        gradients_of(model, batch)
        optimizer.step()
    measured = measure_importance(model, batches, optimizer, metric=metric)
    expected = naive(model, batches, optimizer, make, metric)
    # A float32 weight near 1 stores its change to 2**-24, so a tensor that hardly moves has few
    # digits; it weighs nothing beside the largest.
    slack = 1e-6 * max(map(abs, expected.values()))
    assert measured == pytest.approx(expected, rel=1e-4, abs=slack)


class Small(nn.Module):
    """Two matrices and a vector, in float64."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first = nn.Linear(5, 7, dtype=torch.float64)
        self.last = nn.Linear(7, 3, bias=False, dtype=torch.float64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.tanh(self.first(x)))  # type: ignore[no-any-return]


def squared(model: Any, batch: Batch) -> torch.Tensor:
    inputs, wanted = batch
    return (model(inputs) - wanted).square().mean()  # type: ignore[no-any-return]


def drawn(count: int, seed: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    draw = partial(torch.randn, generator=generator, dtype=torch.float64)
    return [(draw(4, 5), draw(4, 3)) for _ in range(count)]


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    kind=st.sampled_from(ALL_CLASSES),
    lr=st.floats(1e-5, 0.1),
    steps=st.integers(0, 4),
    count=st.integers(1, 3),
    metric=st.sampled_from(METRICS),
    seed=st.integers(0, 2**16),
)
def test_importance_is_the_naive_one_for_any_optimizer(
    kind: Callable[..., Optimizer], lr: float, steps: int, count: int, metric: str, seed: int
) -> None:
    model, batches = Small(seed), drawn(count, seed)
    model.first.bias.requires_grad_(False)  # Muon takes matrices only

    def make(groups: Iterable[Any]) -> Optimizer:
        return kind([p for p in next(iter(groups))["params"] if p.requires_grad], lr=lr)

    optimizer = make(grouped(model))
    for batch in drawn(steps, seed + 1):
        gradients_of(model, batch, squared)
        optimizer.step()
    measured = measure_importance(model, batches, optimizer, squared, metric=metric)
    expected = naive(model, batches, optimizer, make, metric, squared)
    # Loading casts NAdam's mu_product from float32 (6e-8) to float64, in the reference only.
    rel = 1e-7 if kind is torch.optim.NAdam else EXACT
    assert measured == pytest.approx(expected, rel=rel, abs=NOTHING)


def half_square(model: Any, batch: Batch) -> torch.Tensor:
    return 0.5 * model.weight.square().sum()  # type: ignore[no-any-return]


def test_on_a_parabola_importance_is_what_paper_and_pencil_say() -> None:
    model = nn.Linear(3, 2, bias=False, dtype=torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.25)
    square = float(model.weight.detach().square().sum())
    # The gradient is w, the update -w/4, and the new gradient 3w/4.
    first = measure_importance(model, [None], optimizer, half_square)
    second = measure_importance(model, [None], optimizer, half_square, metric="two_pass")
    assert first["weight"] == pytest.approx(square / 4, rel=1e-14)
    assert second["weight"] == pytest.approx(square / 4 * 3 / 4, rel=1e-14)


def test_a_small_step_on_one_tensor_lowers_the_loss_by_its_importance() -> None:
    model, batch = Small(), drawn(1, 0)[0]
    importance = measure_importance(
        model, [batch], torch.optim.SGD(model.parameters(), lr=1e-5), squared
    )
    before = squared(model, batch).item()
    for name, parameter in model.named_parameters():
        moved = copy.deepcopy(model)
        optimizer = torch.optim.SGD([moved.get_parameter(name)], lr=1e-5)
        gradients_of(moved, batch, squared)
        optimizer.step()
        fall = before - squared(moved, batch).item()
        # What first order leaves out is lr / 2 times the curvature, which is below 20 here.
        assert fall == pytest.approx(importance[name], rel=1e-4), parameter.shape


def naive_statistics(model: nn.Module, batch: Batch) -> dict[str, list[float]]:
    weights = {name: p.detach().double() for name, p in model.named_parameters()}
    result = {name: [0.0, w.norm().item(), 0.0, 0.0] for name, w in weights.items()}
    for name, gradient in gradients_of(copy.deepcopy(model), batch).items():
        g, w = gradient.double(), weights[name]
        values = [g.norm(), w.norm(), g.square().sum(), (g * w).abs().sum()]
        result[name] = [value.item() for value in values]
    return result


@pytest.mark.parametrize("family", ["opt", "t5", "llama"])
def test_statistics_are_the_naive_ones(family: str) -> None:
    model = build(family).eval()
    batches = [batch_for(family, seed=seed) for seed in range(3)]
    measured = measure_statistics(model, batches)
    each = [naive_statistics(model, batch) for batch in batches]
    for name, statistics in measured.items():
        means = [math.fsum(column) / 3 for column in zip(*(e[name] for e in each), strict=True)]
        # Sums of at most 1e5 non-negative float64 terms, each side in its own order.
        assert astuple(statistics) == pytest.approx(means, rel=1e-12), name
    assert measured.keys() == dict(model.named_parameters()).keys()
