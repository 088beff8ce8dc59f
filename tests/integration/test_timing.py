"""Seconds of batches and of the passes that set a clock, as on a GPU: each waits for it."""

import itertools
from typing import Any

import pytest
import torch

from greentrainer import AdaptiveBackprop
from greentrainer.budget import Budget
from greentrainer.budget import calibrate as timing
from greentrainer.cost import flop_counter
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
        model, optimizer, batch, rho=Budget("rho", 0.9, cost="seconds"), total_batches=20
    ) as engine:
        booked = [entry.flops for entry in engine.ledger if entry.kind == "trace"]
    trials = 2
    assert len(counted) == trials + (1 if warming == "one" else trials)
    assert sum(booked) == sum(counted) > 0
