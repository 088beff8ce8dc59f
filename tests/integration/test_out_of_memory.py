"""A run that runs out of memory goes on by itself, with fewer rows at a time."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from greentrainer.hf import GreenTrainer
from greentrainer.run.folder import ran_out
from tests.integration.test_cli import command
from tests.integration.test_run_folder import base, require_books_in_step, words

__all__ = ["base"]


def small(monkeypatch: pytest.MonkeyPatch, rows: int, after: int) -> list[int]:
    """A device with room for so many rows a step, once `after` batches were trained on."""
    real, seen = GreenTrainer.training_step, list[int]()

    def step(self: Any, model: Any, inputs: Any, *rest: Any) -> Any:
        seen.append(len(inputs["input_ids"]))
        if len(seen) > after and seen[-1] > rows:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return real(self, model, inputs, *rest)

    monkeypatch.setattr(GreenTrainer, "training_step", step)
    return seen


@pytest.mark.parametrize(("after", "more"), [(0, ()), (5, ("--save-every", "2"))])
def test_it_goes_on_in_pieces(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], after: int, more: tuple[str, ...],
) -> None:  # fmt: skip
    """From the last checkpoint, or from the beginning; and ends where a run with room ends."""
    kind = ["--method", "full", "--batch-size", "4", "--accumulate", "1", *more]
    assert command(monkeypatch, *words(base, tmp_path / "roomy", *kind)) == 0
    seen = small(monkeypatch, 2, after)
    capsys.readouterr()
    assert command(monkeypatch, *words(base, tmp_path / "run", *kind)) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "out of memory: going on from" in told
    assert "with 2 rows of a batch of 4 at a time" in told
    assert ("checkpoint-4" in told) == bool(after)
    assert set(seen[after + 1 :]) <= {1, 2}
    require_books_in_step(tmp_path / "run")
    bills = [json.loads((tmp_path / n / "metrics.json").read_text()) for n in ("roomy", "run")]
    assert bills[1]["after"]["loss"] == pytest.approx(bills[0]["after"]["loss"], rel=1e-3)
    assert bills[1]["bill"]["memory"]["rows"] == 2
    assert bills[0]["bill"]["steps"] == bills[1]["bill"]["steps"]


def test_once_and_then_it_is_told(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small(monkeypatch, 0, 0)
    kind = ["--method", "full", "--batch-size", "4", "--accumulate", "1"]
    assert command(monkeypatch, *words(base, tmp_path / "run", *kind)) == 2
    told = capsys.readouterr().err
    assert "out of memory on the device with 2 rows at a time: try --batch-size 1 --acc" in told
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "failed"


@pytest.mark.parametrize(
    ("error", "ran"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (MemoryError(), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 9 bytes"), True),
        (RuntimeError("shapes differ"), False),
        (KeyError("x"), False),
    ],
    ids=lambda one: type(one).__name__,
)
def test_what_running_out_is(error: Exception, ran: bool) -> None:
    assert ran_out(error) == ran
