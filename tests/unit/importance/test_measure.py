"""The probe is repeatable, frees gradients as they come, costs what it must, refuses nonsense."""

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from transformers import get_linear_schedule_with_warmup

from greentrainer import trace
from greentrainer.cost import flop_counter
from greentrainer.importance import measure_importance, measure_statistics
from greentrainer.types import Batch
from tests.conformance.families import batch_for, build
from tests.probe import METRICS, OPTIMIZERS, batches, in_training, noisy, picture, train_step


@pytest.mark.parametrize("metric", METRICS)
def test_the_same_probe_twice_gives_the_same_even_with_dropout(metric: str) -> None:
    model, optimizer = in_training()
    probe = partial(measure_importance, model, batches(3), optimizer, noisy, metric=metric)
    first = probe()
    with torch.no_grad():
        assert probe() == first
    torch.rand(1)
    assert probe() != first  # dropout was on


def deep(layers: int, width: int = 128) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(layers)))


def energy(model: Any, batch: Batch) -> torch.Tensor:
    return model(batch).square().mean()  # type: ignore[no-any-return]


@pytest.mark.parametrize("metric", METRICS)
def test_at_most_one_gradient_is_alive(metric: str) -> None:
    model, alive = deep(40), []
    parameters = list(model.parameters())
    for parameter in parameters:  # these hooks run before the probe's own
        parameter.register_post_accumulate_grad_hook(
            lambda _: alive.append(sum(p.grad is not None for p in parameters))
        )
    measure_importance(model, [torch.ones(1, 128)], AdamW(parameters), energy, metric=metric)
    assert alive == [1] * 40 * (2 if metric == "two_pass" else 1)


def peak_bytes(run: Callable[[], Any]) -> int:
    """The most that was allocated at any time beyond what there was, as the allocator tells it."""
    cpu = torch.profiler.ProfilerActivity.CPU
    with torch.profiler.profile(activities=[cpu], profile_memory=True, acc_events=True) as profile:
        run()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return int(max(itertools.accumulate(event.nbytes() for event in events)))


@pytest.mark.parametrize(("metric", "copies"), [("first_order", 0), ("two_pass", 40)])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_extra_memory_is_a_few_tensors(kind: str, metric: str, copies: int) -> None:
    model, batch = deep(40), torch.ones(1, 128)
    optimizer = OPTIMIZERS[kind](model.parameters())
    energy(model, batch).backward()
    optimizer.step()
    optimizer.zero_grad()
    probe = partial(measure_importance, model, [batch], optimizer, energy, metric=metric)
    tensor = 128 * 128 * 4
    # Gradient, new weight, both weights in float64 and their difference: 1 + 1 + 3 * 2 = 8; and
    # activations of 1/128 tensor a layer.
    assert peak_bytes(probe) <= (copies + 9) * tensor


@pytest.mark.parametrize("family", ["opt", "t5", "llama-checkpointed"])
def test_a_probe_of_some_tensors_costs_what_the_graph_says(family: str) -> None:
    model, batch = build(family), batch_for(family)
    graph = trace(model, batch)
    optimizer = SGD(model.parameters(), lr=0.1)
    for names in (graph.tensors[:5], graph.tensors[3::4], graph.tensors[-1:]):
        with flop_counter() as counter:
            measured = measure_importance(model, [batch], optimizer, tensors=names)
        assert tuple(measured) == names
        executed = counter.get_total_flops()
        assert executed == graph.forward_flops + graph.backward_flops(names)


def test_what_the_loss_does_not_touch_gets_zero() -> None:
    model, optimizer = in_training()
    assert measure_importance(model, batches(2), optimizer, noisy)["unused"] == 0.0
    for metric in METRICS:
        only = measure_importance(model, batches(2), optimizer, noisy, ["unused"], metric=metric)
        assert only == {"unused": 0.0}
    assert measure_statistics(model, batches(2), noisy)["unused"].gradient_norm == 0.0


class Wrapper(Optimizer):
    """As Accelerate wraps an optimizer: what is set on it is set on the one inside."""

    def __init__(self, inside: Optimizer) -> None:
        self.inside = inside

    @property
    def param_groups(self) -> Any:  # type: ignore[override]
        return self.inside.param_groups


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batches": []}, "there is no batch to measure on"),
        ({"tensors": ["first.weigth"]}, "no tensor 'first.weigth' to measure"),
        ({"tensors": []}, "no tensor to measure"),
        ({"metric": "fisher"}, "metric is 'fisher': choose first_order or two_pass"),
        ({"loss_fn": lambda m, b: m(b[0])}, r"must be one number, not of shape \(4, 3\)"),
        ({"loss_fn": None}, "a batch of type tuple is no mapping"),
        ({"loss_fn": lambda m, b: noisy(m, b) / 0}, "the loss of batch 1 is inf"),
    ],
)
def test_what_cannot_be_measured_is_refused(change: dict[str, Any], message: str) -> None:
    model, optimizer = in_training()
    before = picture(model, optimizer)
    arguments = {"batches": batches(2), "loss_fn": noisy, **change}
    with pytest.raises(ValueError, match=message):
        measure_importance(model, optimizer=optimizer, **arguments)
    assert picture(model, optimizer) == before


def test_optimizers_that_cannot_be_stepped_on_one_tensor_are_refused() -> None:
    model, optimizer = in_training()
    refused: list[tuple[Optimizer, str]] = [
        (SGD(model.first.parameters(), lr=0.1), "tensor 'unused' is in no param group"),
        (torch.optim.LBFGS(model.parameters()), "LBFGS steps all tensors at once"),
        (Wrapper(optimizer), "Wrapper wraps another optimizer"),
    ]
    for each, message in refused:
        with pytest.raises(ValueError, match=message):
            measure_importance(model, batches(1), each, noisy)
    with pytest.raises(ValueError, match="no batch"):
        measure_statistics(model, [], noisy)


def warming_up(rate: Any, steps: int) -> tuple[Any, Optimizer]:
    """AdamW with two groups, at `rate` and ten times that, `steps` into a warm-up of ten."""
    model, _ = in_training()
    last = {"params": model.last.parameters(), "lr": rate * 10}
    optimizer = AdamW([{"params": model.first.parameters()}, last], lr=rate)
    scheduler = get_linear_schedule_with_warmup(optimizer, 10, 100)
    for batch in batches(steps, seed=7):
        train_step(model, optimizer, batch)
        scheduler.step()
    return model, optimizer


def set_rates(optimizer: Optimizer, rates: list[Any]) -> None:
    """As if the rates had been these, and no scheduler were there."""
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        del group["initial_lr"]
        group["lr"] = rate


@pytest.mark.parametrize("kind", [float, torch.tensor])
@pytest.mark.parametrize("metric", METRICS)
def test_at_rate_zero_the_update_is_made_at_the_initial_rate(metric: str, kind: Any) -> None:
    model, optimizer = warming_up(kind(1e-3), 0)
    assert [float(group["lr"]) for group in optimizer.param_groups] == [0.0, 0.0]
    names = ["first.weight", "last.weight"]
    probe = partial(measure_importance, model, batches(2), optimizer, noisy, names, metric=metric)
    before = picture(model, optimizer)
    warming = probe()
    assert picture(model, optimizer) == before
    set_rates(optimizer, [kind(1e-3), kind(1e-3) * 10])
    assert probe() == warming
    assert all(warming.values())


@pytest.mark.parametrize("kind", [float, torch.tensor])
def test_above_zero_the_update_is_made_at_the_present_rate(kind: Any) -> None:
    model, optimizer = warming_up(kind(1e-3), 3)
    rates = [group["lr"] for group in optimizer.param_groups]
    probe = partial(measure_importance, model, batches(2), optimizer, noisy, ["last.weight"])
    during = probe()
    set_rates(optimizer, rates)
    assert probe() == during
    assert 0 < float(rates[0]) < 1e-3


def test_without_an_initial_rate_nothing_moves_at_rate_zero() -> None:
    model, _ = in_training()
    optimizer = AdamW(model.parameters(), lr=0.0)
    assert not any(measure_importance(model, batches(1), optimizer, noisy).values())
