"""Seconds of batches and of the passes that set a clock, as on a GPU: each waits for it."""

import itertools
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from greentrainer import AdaptiveBackprop
from greentrainer.budget import Budget, Clock
from greentrainer.budget import calibrate as timing
from greentrainer.budget.clock import TimedPass, work_of
from greentrainer.cost import flop_counter
from greentrainer.energy import Consumption
from greentrainer.energy import consumption as measured
from greentrainer.engine import bookkeeper as bookkeeper
from greentrainer.model import now
from tests.conformance.families import batch_for, build


def test_a_gpu_is_waited_for_and_nothing_else_is(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    now(torch.device("cpu"))
    assert not waited
    now(torch.device("cuda", 1))
    assert waited == [torch.device("cuda", 1)]


def test_a_batch_is_timed_from_its_forward_pass_to_the_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each asking takes a second here, so a batch's two make one between them."""
    clock = itertools.count()
    monkeypatch.setattr(bookkeeper, "now", lambda _device: next(clock))
    model, batch = build("llama"), batch_for("llama")
    optimizer = torch.optim.AdamW(model.parameters())
    with AdaptiveBackprop(model, optimizer, batch, rho=0.6, total_batches=20) as engine:
        engine.reselect([batch])
        for _ in range(3):
            engine.loss(batch).backward()
            optimizer.step()
            optimizer.zero_grad()
    assert [entry.seconds for entry in engine.ledger if entry.kind == "train"] == [1, 1, 1]
    assert next(clock) == 6


@pytest.mark.parametrize("warming", ["one", "each"])
def test_passes_that_set_a_clock_are_on_the_bill(
    warming: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU each is made once beforehand."""
    if warming == "each":
        monkeypatch.setattr(timing, "_warming", lambda trials, _device: trials)
    model, batch = build("llama"), batch_for("llama")
    optimizer = torch.optim.AdamW(model.parameters())
    counted: list[int] = []
    timed = timing._timed

    def count(*given: Any) -> Any:
        with flop_counter() as counter:
            found = timed(*given)
        counted.append(counter.get_total_flops())
        return found

    monkeypatch.setattr(timing, "_timed", count)
    with AdaptiveBackprop(
        model, optimizer, batch, rho=Budget("rho", 0.9, cost="seconds"), total_batches=9999
    ) as engine:
        booked = [entry.flops for entry in engine.ledger if entry.kind == "trace"]
    trials = 2
    assert len(counted) == trials + (1 if warming == "one" else trials)
    assert sum(booked) == sum(counted) > 0


@pytest.mark.parametrize(
    ("batches", "repeats", "budget"),
    [
        (10, 0, Budget("hours", 10 * 2 / 3600)),
        (60, 1, Budget("hours", 60 * 2 / 3600)),
        (9999, 2, Budget("hours", 9999 * 2 / 3600)),
        (10, 0, Budget("rho", 1.0, "seconds")),
        (None, 2, Budget("rho", 1.0, "seconds")),
    ],
    ids=str,
)
def test_a_clock_takes_its_share_of_a_budget(
    batches: int | None, repeats: int, budget: Budget, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each pass takes 2 s here, and 5% of so many may be taken; of a run without end any time."""
    made: list[int] = []

    def timed(_model: Any, _batch: Any, _loss: Any, trial: Any, times: int) -> TimedPass:
        made.append(times)
        return TimedPass(work_of(trial.graph, trial.names), 1.0, 1.0)

    monkeypatch.setattr(timing, "_timed", timed)
    monkeypatch.setattr(timing, "_update_seconds", lambda *_: 0.0)
    model, batch = build("llama"), batch_for("llama")
    optimizer = torch.optim.AdamW(model.parameters())
    with AdaptiveBackprop(model, optimizer, batch, rho=budget, total_batches=batches) as engine:
        assert engine.clock is not None
        assert made == [1, *[repeats] * (2 if repeats else 0)]
        assert (engine.clock.tokens > 0) == (repeats > 0)
        if not repeats:
            assert engine.clock.weight == engine.clock.activation > 0


@pytest.mark.parametrize("unit", ["hours", "rho"])
def test_a_run_goes_by_the_pace_of_its_steps(unit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Told 1 s a step, which takes 2: half as many can be made of the same hours."""
    seconds = [0.0]
    made = SimpleNamespace(monotonic=lambda: seconds[0], time=lambda: seconds[0])
    monkeypatch.setattr(measured, "time", made)
    consumption = Consumption(lambda: 0.0, clock=made.time)
    model, batch = build("llama").train(), batch_for("llama")
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    tokens = batch["input_ids"].numel()
    with AdaptiveBackprop(model, optimizer, batch, rho=1.0) as engine:
        flops = engine.graph.full_flops
    told = Clock(1 / flops, 1 / flops, 1 / flops, 0.0, 1 / flops, "", tokens=tokens)
    amount = 40 / 3600 if unit == "hours" else 0.5
    budget = Budget(unit, amount, cost="seconds", clock=told, consumption=consumption)
    with AdaptiveBackprop(
        model, optimizer, batch, rho=budget, total_batches=80, steps="choose"
    ) as engine:
        engine.reselect([batch])
        assert engine.planned == pytest.approx(40, abs=1)
        while not engine.finished:
            engine.loss(batch).backward()
            optimizer.step()
            optimizer.zero_grad()
            seconds[0] += 2.0
            engine.after_step()
            if engine.ledger.batches == 5:
                assert engine.planned == pytest.approx(20, abs=1)
    assert engine.ledger.batches == pytest.approx(20, abs=1)
