"""Budgets in hours, energy and CO2 on a model that takes its time, whatever the machine.

Time is made here, and passes only while somebody sleeps, by up to a fifth more or less than asked:
so what is tested does not depend on what else the machine does.  One test goes by the real clock,
and needs a machine with nothing else to do.
"""

import random
import time
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from greentrainer import AdaptiveBackprop
from greentrainer.budget import Budget
from greentrainer.energy import Consumption, Intensity
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


class MadeTime:
    """Seconds since 1970 that pass by sleeping.  worked: those of them in which `Slow` worked."""

    def __init__(self) -> None:
        self.now, self.worked = 1.8e9, 0.0
        self._chance = random.Random(0)

    def tell(self) -> float:
        """In place of each clock."""
        return self.now

    def sleep(self, seconds: float) -> None:
        """In place of sleeping."""
        if seconds == STEP:
            seconds *= self._chance.uniform(0.8, 1.2)
            self.worked += seconds
        self.now += seconds

    def kilowatt(self) -> float:
        """Joules of a device that draws 1 kW at work and nothing while it is idle."""
        return 1000 * self.worked


@pytest.fixture(autouse=True)
def made(monkeypatch: pytest.MonkeyPatch) -> MadeTime:
    world = MadeTime()
    for clock in ("time", "monotonic", "perf_counter"):
        monkeypatch.setattr(time, clock, world.tell)
    monkeypatch.setattr(time, "sleep", world.sleep)
    return world


@pytest.mark.slow
def test_a_run_told_hours_ends_within_five_per_cent_of_them_by_the_real_clock(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.undo()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trained(Budget("hours", 1.0), stop=1)  # what only a process's first run has to wait for
    hours = 0.6 * FULL_SECONDS / 3600
    used = trained(Budget("hours", hours)).consumption.used().seconds / 3600
    assert abs(used / hours - 1) < 0.05


@pytest.mark.parametrize("share", [0.5, 0.6, 0.8, 0.9])
def test_a_run_told_hours_ends_within_five_per_cent_of_them(share: float) -> None:
    hours = share * FULL_SECONDS / 3600
    engine = trained(Budget("hours", hours))
    used = engine.consumption.used().seconds / 3600
    assert abs(used / hours - 1) < 0.05
    assert engine.ledger.batches == BATCHES
    assert 0.3 < engine.ledger.rho_spent < 1


def test_hours_that_cannot_be_are_refused_with_those_that_can() -> None:
    with refusal("hours is", "even the smallest selection takes about") as _:
        trained(Budget("hours", 0.2 * FULL_SECONDS / 3600))
    with pytest.raises(ValueError, match="takes about") as caught:
        trained(Budget("hours", 0.2 * FULL_SECONDS / 3600))
    offered = float(str(caught.value).partition("takes about ")[2].partition(":")[0])
    used = trained(Budget("hours", 1.15 * offered)).consumption.used().seconds / 3600
    assert used < 1.25 * offered


@pytest.mark.parametrize("times", [1.2, 5])
@pytest.mark.filterwarnings("ignore:hours .*training everything takes about")
def test_where_full_fine_tuning_fits_it_is_full_fine_tuning_from_the_first_step(
    times: float,
) -> None:
    """Nothing is spent on choosing: no probe, and all tensors at every step."""
    engine = trained(Budget("hours", times * FULL_SECONDS / 3600))
    assert engine.ledger.probe_flops == 0
    assert {len(event["names"]) for event in engine.history} == {LAYERS}
    assert engine.ledger.batches == BATCHES


def test_more_than_full_fine_tuning_takes_is_told() -> None:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        engine = trained(Budget("hours", 3 * FULL_SECONDS / 3600), stop=8)
    assert any("training everything takes about" in str(one.message) for one in told)
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
    seconds = engine.consumption.used().seconds
    full = trained(Budget("rho", 1.0), stop=BATCHES // 4).ledger.total("seconds", "train")
    assert abs(seconds / (4 * full) / 0.6 - 1) < 0.08  # on a quarter of the batches


def test_a_resumed_run_keeps_to_what_is_left() -> None:
    hours = 0.6 * FULL_SECONDS / 3600
    first = trained(Budget("hours", hours), stop=BATCHES // 2)
    state = first.state_dict()
    budget = Budget("hours", hours, clock=first.clock)
    second = trained(budget, stop=BATCHES // 2, before=state)
    assert second.ledger.batches == BATCHES
    assert abs(second.consumption.used().seconds / 3600 / hours - 1) < 0.05


def starting(*pieces: tuple[float, float]) -> Intensity:
    """An intensity from now on: each piece begins after so many seconds."""
    now = time.time()
    return Intensity(tuple(now + after for after, _ in pieces), tuple(g for _, g in pieces))


def emission(made: MadeTime, follows: bool, spending: float) -> tuple[float, float]:
    """Grams a second of work under a day of some seconds, of 1 kW, and share of full's FLOPs.

    follows: whether the run knows of that day.  pace: seconds between batches at least, as where
    data comes slowly.
    """
    made.worked = 0.0
    length = BATCHES * max(spending, 0.04) / 4
    day = starting((0, 200), (length, 700), (2 * length, 150), (3 * length, 500))
    known = Consumption(lambda: 0.0, day if follows else Intensity(), clock=made.tell)
    bill = Consumption(made.kilowatt, day, clock=made.tell)
    model = Stack()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    batch = torch.randn(4, WIDTH)
    engine = AdaptiveBackprop(
        model, optimizer, batch, rho=Budget("rho", 0.6, consumption=known), loss_fn=energy,
        total_batches=BATCHES, every=BATCHES // 4,
    )  # fmt: skip
    start = time.monotonic()
    for number in range(BATCHES):
        bill.used()
        time.sleep(max(0.0, start + number * spending - time.monotonic()))
        bill.used()
        if engine.due:
            engine.reselect([batch])
        engine.loss(batch).backward()
        optimizer.step()
        optimizer.zero_grad()
    return bill.used().grams / made.worked, engine.ledger.rho_spent


@pytest.mark.parametrize(("pace", "at_most"), [(0.0, 1.01), (0.08, 0.92)], ids=["busy", "paced"])
def test_with_a_schedule_no_more_is_emitted_than_at_a_constant_rho(
    made: MadeTime, pace: float, at_most: float
) -> None:
    """A device that is never idle emits by the hour: moving work about changes nothing there."""
    followed, spent = emission(made, True, pace)
    constant, same = emission(made, False, pace)
    assert spent <= 0.6
    assert spent == pytest.approx(same, rel=0.03)
    assert followed < at_most * constant


@pytest.mark.parametrize("pieces", [((0, 100), (2, 500)), ((0, 500), (2, 100))])
def test_grams_are_kept_to_while_the_intensity_moves(made: MadeTime, pieces: Any) -> None:
    consumption = Consumption(_kilowatt(0.0), starting(*pieces), clock=made.tell)
    mean = consumption.intensity.mean(time.time(), 0.65 * FULL_SECONDS)
    amount = 0.65 * FULL_SECONDS / 3600 * mean
    trained(Budget("co2_grams", amount, consumption=consumption))
    assert abs(consumption.used().grams / amount - 1) < 0.08


def test_power_before_the_passes_does_not_count() -> None:
    """Half a second of next to nothing, and then a kilowatt."""
    consumption = Consumption(_kilowatt(0.5))
    time.sleep(0.5)
    amount = 0.6 * FULL_SECONDS / 3600
    engine = trained(Budget("kwh", amount, consumption=consumption))
    assert abs(consumption.used().kwh / amount - 1) < 0.05
    assert engine.ledger.rho_spent < 0.9


def _kilowatt(after: float) -> Callable[[], float]:
    start = time.monotonic() + after
    return lambda: 1000 * max(0.0, time.monotonic() - start)


def test_no_power_is_refused_in_one_line() -> None:
    with refusal("shows no power"):
        trained(Budget("kwh", 1.0, consumption=Consumption(lambda: 0.0)))


@pytest.mark.filterwarnings("ignore:what batches of other sizes cost")
@pytest.mark.parametrize(("first", "known"), [(2, True), (8, True), (2, False)])
def test_flops_are_kept_to_whatever_the_first_batch(first: int, known: bool) -> None:
    """Batches of two to eight rows; the first is the smallest or the largest."""
    model = Stack()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    sizes = [first, *(2 + 2 * (n % 4) for n in range(BATCHES - 1))]
    data = [torch.randn(size, WIDTH) for size in sizes]
    one = trained(Budget("rho", 1.0), stop=1).graph.full_flops / 4
    whole = int(sum(sizes) * one)
    budget = Budget("flops", 0.6 * whole, whole_flops=whole if known else None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        engine = AdaptiveBackprop(
            model, optimizer, data[0], rho=budget, loss_fn=energy, one_call=False,
            total_batches=BATCHES, every=BATCHES // 4,
        )  # fmt: skip
    for batch in data:
        if engine.due:
            engine.reselect([batch])
        engine.loss(batch).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert 0.55 * whole < engine.ledger.spent_flops <= 0.6 * whole


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
