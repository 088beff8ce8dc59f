"""The folder of a run is true at any moment, and drawn however the run ends."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from greentrainer.records import read_lines
from greentrainer.report.record import read
from tests.integration.test_cli import FLAGS, command
from tests.tiny import saved


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and rows."""
    folder = tmp_path_factory.mktemp("base")
    lines = [{"prompt": f"add {i} and {i}", "completion": f"it is {2 * i}"} for i in range(100)]
    (folder / "mine.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    saved(folder / "model")
    return folder


def words(base: Path, run: Path, *more: str) -> list[str]:
    own = ["train", "--model", str(base / "model"), "--task", str(base / "mine.jsonl"), "--rho",
           "0.6", "--output-dir", str(run)]  # fmt: skip
    return [*own, *FLAGS, *more]


def started(base: Path, run: Path, steps: int, *more: str) -> subprocess.Popen[bytes]:
    """A process that has made at least so many steps, as its folder says."""
    child = subprocess.Popen(
        [sys.executable, "-m", "greentrainer.cli", *words(base, run, *more)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    for _ in range(2400):
        if len(read_lines(run / "steps.jsonl")) >= steps:
            return child
        assert child.poll() is None, "it ended before"
        time.sleep(0.05)
    raise AssertionError("no steps in two minutes")


def require_books_in_step(run: Path) -> None:
    """What the files say fits together: no batch twice, none left out."""
    record = read(run)
    last = record.steps[-1]
    assert [row["step"] for row in record.steps] == list(range(1, len(record.steps) + 1))
    assert record.batches - last["batches"] in (0, 1)  # a batch may have ended in between
    spent = sum(e["forward_flops"] + e["backward_flops"] for e in record.ledger)
    assert record.batches > last["batches"] or spent == last["spent_flops"]
    assert record.selections[0]["batch"] == 0


def test_a_killed_run_leaves_a_folder_that_says_so_and_goes_on(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    more = ("--epochs", "30", "--save-every", "8")
    child = started(base, run, 20, *more)
    child.send_signal(signal.SIGKILL)
    child.wait()
    record = read(run)
    assert record.status == "running"
    assert record.state["planned_steps"] == 690
    assert record.state["command"].startswith("greentrainer train --model")
    assert 20 <= record.steps_made < 690
    require_books_in_step(run)
    assert not (run / "report.html").exists()
    assert command(monkeypatch, "report", run) == 0
    assert capsys.readouterr().out.strip() == str(run / "report.html")
    page = (run / "report.html").read_text()
    assert "Running, or killed" in page
    assert f"after {record.steps_made} of 690 steps" in page
    assert "not evaluated" in page
    assert list(record.metrics) == ["before"]

    child = started(base, run, record.steps_made + 5, *more, "--resume")
    child.send_signal(signal.SIGTERM)
    assert child.wait(60) == 130
    again = read(run)
    assert again.status == "interrupted"
    assert again.state["resumed_at_step"] % 8 == 0
    assert again.state["resumed_at_step"] <= record.steps_made
    require_books_in_step(run)
    before = [row["loss"] for row in record.steps]
    assert [row["loss"] for row in again.steps][: len(before)] == before
    assert f"Interrupted after {again.steps_made} of 690 steps" in (run / "report.html").read_text()
    card = ModelCard((run / "model" / "README.md").read_text())
    assert "Training was interrupted after" in card.text
    assert again.metrics["bill"]["spent_flops"] == again.steps[-1]["spent_flops"]


@pytest.mark.thorough
def test_a_failing_run_says_why_and_is_drawn(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    assert command(monkeypatch, *words(base, run, "--learning-rate", "1e30", "--overwrite")) == 2
    record = read(run)
    assert record.status == "failed"
    assert "lower the learning rate" in record.state["error"]
    assert record.state["ended"]
    assert record.batches == record.steps_made + 1  # the batch that failed was paid for
    page = (run / "report.html").read_text()
    assert f"Failed after {record.steps_made} of" in page
    assert "lower the learning rate" in page


def test_a_run_that_never_began_is_drawn_too(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    assert command(monkeypatch, *words(base, run, "--task", "none.jsonl")) == 2
    record = read(run)
    assert (record.status, record.steps_made) == ("failed", 0)
    assert "cannot read none.jsonl" in (run / "report.html").read_text()


def test_a_finished_run_is_on_record_whole(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    typed = words(base, run, "--accumulate", "2", "--evaluate-every", "4", "--set", "license=mit",
                  "--steps", "all")  # fmt: skip
    assert command(monkeypatch, *typed) == 0
    record = read(run)
    bill: dict[str, Any] = record.metrics["bill"]
    assert record.status == "done"
    assert record.state["data"] == {"train": 90, "validation": 0, "test": 10}
    assert record.command is not None
    assert record.command.startswith("greentrainer train --model")
    assert record.steps_made == bill["steps"] == record.state["planned_steps"]
    assert record.batches == bill["batches"]
    assert record.total("full_flops") == bill["full_flops"]
    seconds = record.total("seconds", "train")
    assert seconds == pytest.approx(bill["train_seconds"])  # summed in another order
    costs = record.costs
    assert sum(t["flops"] for t in costs["tensors"]) < costs["full_backward_flops"]
    assert all(t["flops"] <= t["closure_flops"] for t in costs["tensors"])
    assert {t["block"] for t in costs["tensors"]} == {None, 0, 1, 2}
    chosen = [event for event in record.selections if event["optimum_at_most"]]
    assert chosen
    assert all(e["importance"] <= e["optimum_at_most"] * (1 + 1e-9) for e in chosen)
    assert [row["step"] for row in record.log if "eval_loss" in row] == [4, 8, 12]
    card = ModelCard((run / "model" / "README.md").read_text())
    assert card.data.get("license") == "mit"
    assert "after" in card.text
    assert command(monkeypatch, *words(base, run, "--learning-rate", "1e30", "--overwrite")) == 2
    again = read(run)
    assert "after" not in again.metrics  # of the run before
    assert not again.predictions
