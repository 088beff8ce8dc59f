"""Budgets in hours, energy and CO2 on a model that takes its time, whatever the machine."""

import time
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from greentrainer import AdaptiveBackprop
from greentrainer.budget import Budget
from greentrainer.consumption import Consumption, Intensity
from tests.tiny import refusal

LAYERS, WIDTH, STEP = 8, 16, 0.003
BATCHES = 80
FULL_SECONDS = BATCHES * STEP * (3 * LAYERS - 1)
"""About what full fine-tuning takes: each layer forward, for its weight, and passing on."""


class Slow(torch.autograd.Function):
    """A product that takes `STEP` seconds forward and for each gradient."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        time.sleep(STEP)
        return x @ weight

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        [gradient] = gradients
        x, weight = ctx.saved_tensors
        found: list[torch.Tensor | None] = [None, None]
        if ctx.needs_input_grad[0]:
            time.sleep(STEP)
            found[0] = gradient @ weight.T
        if ctx.needs_input_grad[1]:
            time.sleep(STEP)
            found[1] = x.T @ gradient
        return tuple(found)


class Stack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.weights = nn.ParameterList(torch.randn(WIDTH, WIDTH) / 4 for _ in range(LAYERS))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for weight in self.weights:
            x = Slow.apply(x, weight)  # type: ignore[no-untyped-call]
        return x


def energy(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    loss: torch.Tensor = (model(batch) - batch).square().mean()
    return loss


def trained(budget: Budget, stop: int = BATCHES, before: Any = None) -> AdaptiveBackprop:
    """A run within a budget, of which `stop` batches are trained.  before: a state to resume."""
    model = Stack()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    batch = torch.randn(4, WIDTH)
    engine = AdaptiveBackprop(
        model, optimizer, batch, rho=budget, loss_fn=energy, one_call=False,
        total_batches=BATCHES, every=BATCHES // 4,
    )  # fmt: skip
    if before is not None:
        engine.load_state_dict(before)
    for _ in range(stop):
        if engine.due:
            engine.reselect([batch])
        engine.loss(batch).backward()
        optimizer.step()
        optimizer.zero_grad()
    engine.close()
    return engine


@pytest.fixture(scope="module", autouse=True)
def _warmed_up() -> None:
    """What only the first run of a process has to wait for, is done."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trained(Budget("hours", 1.0), stop=1)


@pytest.mark.parametrize("share", [0.6, 0.8])
def test_a_run_told_hours_ends_within_five_per_cent_of_them(share: float) -> None:
    hours = share * FULL_SECONDS / 3600
    engine = trained(Budget("hours", hours))
    used = engine.budget.consumption.used().seconds / 3600
    assert abs(used / hours - 1) < 0.05
    assert engine.ledger.batches == BATCHES
    assert 0.3 < engine.ledger.rho_spent < 1


def test_hours_that_cannot_be_are_refused_with_those_that_can() -> None:
    with refusal("hours is", "even the smallest selection takes about") as _:
        trained(Budget("hours", 0.2 * FULL_SECONDS / 3600))
    with pytest.raises(ValueError, match="takes about") as caught:
        trained(Budget("hours", 0.2 * FULL_SECONDS / 3600))
    offered = float(str(caught.value).partition("takes about ")[2].partition(":")[0])
    used = trained(Budget("hours", 1.15 * offered)).budget.consumption.used().seconds / 3600
    assert used < 1.25 * offered


def test_more_than_full_fine_tuning_takes_is_told() -> None:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        engine = trained(Budget("hours", 3 * FULL_SECONDS / 3600), stop=8)
    assert any("full fine-tuning takes about" in str(one.message) for one in told)
    assert engine.selection is not None
    assert len(engine.selection.names) == LAYERS


@pytest.mark.parametrize("unit", ["kwh", "co2_grams"])
def test_energy_and_emission_are_kept_to(unit: Any) -> None:
    """At a power of 1 kW, and 500 g a kWh."""
    start = time.monotonic()
    amount = 0.6 * FULL_SECONDS / 3600 * (500 if unit == "co2_grams" else 1)
    consumption = Consumption(lambda: 1000 * (time.monotonic() - start), Intensity(grams=(500.0,)))
    engine = trained(Budget(unit, amount, consumption=consumption))
    used = consumption.used()
    spent = used.kwh if unit == "kwh" else used.grams
    assert abs(spent / amount - 1) < 0.05
    assert engine.ledger.rho_spent < 0.9


def test_flops_are_kept_to() -> None:
    whole = BATCHES * trained(Budget("rho", 1.0), stop=1).graph.full_flops
    engine = trained(Budget("flops", 0.6 * whole, whole_flops=whole))
    assert 0.57 * whole < engine.ledger.spent_flops <= 0.6 * whole


def test_rho_may_be_a_share_of_seconds() -> None:
    engine = trained(Budget("rho", 0.6, cost="seconds"))
    seconds = engine.budget.consumption.used().seconds
    full = trained(Budget("rho", 1.0), stop=BATCHES // 4).ledger.total("seconds", "train")
    assert abs(seconds / (4 * full) / 0.6 - 1) < 0.08  # on a quarter of the batches


def test_a_resumed_run_keeps_to_what_is_left() -> None:
    hours = 0.6 * FULL_SECONDS / 3600
    first = trained(Budget("hours", hours), stop=BATCHES // 2)
    state = first.state_dict()
    budget = Budget("hours", hours, clock=first.clock)
    second = trained(budget, stop=BATCHES // 2, before=state)
    assert second.ledger.batches == BATCHES
    assert abs(second.budget.consumption.used().seconds / 3600 / hours - 1) < 0.05


class Minutes:
    """Time that goes by with each look at the joules."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def emission(schedule: Intensity | None, rho: float) -> tuple[float, float]:
    """Grams emitted under a day's intensity, and share of full fine-tuning's FLOPs spent.

    A batch lasts a minute, and uses as many joules as it executes FLOPs.
    """
    day = Intensity((0.0, 1200.0, 2400.0, 3600.0), (200.0, 700.0, 150.0, 500.0))
    clock = Minutes()
    consumption = Consumption(lambda: 0.0, schedule or Intensity(), clock)
    model = Stack()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    batch = torch.randn(4, WIDTH)
    budget = Budget("rho", rho, consumption=consumption)
    engine = AdaptiveBackprop(
        model, optimizer, batch, rho=budget, loss_fn=energy, total_batches=BATCHES,
        every=BATCHES // 4,
    )  # fmt: skip
    engine._seconds_each = lambda: 60.0  # type: ignore[method-assign]
    grams = 0.0
    for _ in range(BATCHES):
        before = engine.ledger.spent_flops
        if engine.due:
            engine.reselect([batch])
        engine.loss(batch).backward()
        optimizer.step()
        optimizer.zero_grad()
        grams += (engine.ledger.spent_flops - before) * day.at(clock.now)
        clock.now += 60
    return grams / engine.ledger.spent_flops, engine.ledger.rho_spent


def test_with_a_schedule_no_more_is_emitted_than_at_a_constant_rho() -> None:
    day = Intensity((0.0, 1200.0, 2400.0, 3600.0), (200.0, 700.0, 150.0, 500.0))
    followed, spent = emission(day, 0.6)
    constant, same = emission(None, 0.6)
    assert spent <= 0.6
    assert spent == pytest.approx(same, rel=0.02)
    assert followed < 0.95 * constant


@pytest.mark.parametrize(
    ("unit", "amount", "says"), [("rho", 1.2, "choose it above 0 and 1"), ("hours", 0, "above 0")]
)
def test_an_amount_that_cannot_be_is_refused(unit: Any, amount: float, says: str) -> None:
    with refusal(says):
        Budget(unit, amount)


def test_a_budget_in_hours_takes_a_planned_length() -> None:
    model = Stack()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    make: Callable[[], Any] = lambda: AdaptiveBackprop(  # noqa: E731
        model, optimizer, torch.randn(4, WIDTH), rho=Budget("hours", 1), loss_fn=energy
    )
    with refusal("takes total_batches"):
        make()
