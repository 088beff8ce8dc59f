"""`greentrainer compare --jobs`: runs side by side leave what runs one by one leave."""

import json
import os
import signal
import subprocess
import sys
from itertools import accumulate
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.integration.test_cli import command
from tests.integration.test_compare import compare, records, row, spec

OWN = (
    "seconds", "provenance", "side_by_side", "peak_memory_bytes", "energy", "co2", "carbon", "_dir",
)  # fmt: skip
"""Parts of the names of what is another in each run, however equal runs are."""


def shared(value: Any, about: bool = False) -> Any:
    """What equal runs share.

    about: figures are compared to a millionth: of two beside each other each has a thread of its
    own, and so adds up in another order.
    """
    if isinstance(value, list):
        return [shared(one, about) for one in value]
    if isinstance(value, float) and about:
        return pytest.approx(value, rel=1e-6)
    if not isinstance(value, dict):
        return value
    kept = {name: one for name, one in value.items() if not any(part in name for part in OWN)}
    return {name: shared(one, about) for name, one in kept.items()}


@pytest.mark.thorough
def test_two_side_by_side_leave_the_records_of_one_by_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    entry = {"method": "green", "rho": 0.8, "learning_rate": [1e-9, 1e-3], "seeds": [0, 1]}
    path, folder = spec(tmp_path, [entry]), tmp_path / "out"
    beside = compare(path, "--jobs", "2")
    out = capsys.readouterr().out
    said = [line for line in out.splitlines() if ", seed " in line]
    going = list(accumulate(1 if line.endswith(": begun") else -1 for line in said))
    assert (max(going), going[-1], len(going)) == (2, 0, 6)
    other_seed = said.index("green, rho 0.8, learning rate 0.001, seed 1: begun")
    assert going[other_seed - 1] == 0, "rates were not compared yet"
    note = "seconds and energy: 3 of 3 runs were made with up to 2 side by side"
    pages = [(folder / name).read_text() for name in ("table.md", "report.html")]
    assert all(note in text for text in (out, *pages))

    folder.rename(tmp_path / "beside")
    alone = compare(path)
    assert "made with up to" not in capsys.readouterr().out
    assert shared(alone["records"]) == shared(beside["records"], about=True)
    assert {one["side_by_side"] for one in alone["records"]} == {1}
    assert {one["side_by_side"] for one in beside["records"]} == {2}


@pytest.mark.thorough
def test_a_killed_run_leaves_others_alone_and_an_interruption_stops_all(tmp_path: Path) -> None:
    entries: list[dict[str, Any]] = [
        {"name": name, "method": "full", "epochs": epochs}
        for name, epochs in (("killed", 60), ("whole", 1), ("third", 6), ("fourth", 6))
    ]
    path = spec(tmp_path, entries)
    parent = subprocess.Popen(
        [sys.executable, "-m", "greentrainer.cli", "compare", str(path), "--jobs", "2"],
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    read_to(parent, "whole, learning rate 0.001, seed 0: held-out loss")
    first, *_ = runs_of(parent)
    first.kill()
    read_to(parent, "killed, learning rate 0.001, seed 0: failed, and recorded")
    read_to(parent, "fourth, learning rate 0.001, seed 0: begun")
    going = psutil.Process(parent.pid).children(recursive=True)
    parent.send_signal(signal.SIGTERM)
    _, errors = parent.communicate(timeout=60)
    assert parent.returncode == 130
    assert errors == ""
    assert psutil.wait_procs(going, timeout=5)[1] == []
    assert not list((tmp_path / "out").glob("work/*"))
    before = records(path)
    kept = {one["label"]: one for one in map(json.loads, (file.read_text() for file in before))}
    assert {label: one["status"] for label, one in kept.items()} == {
        "killed": "failed",
        "whole": "done",
    }
    assert kept["killed"]["error"] == "the process was killed, perhaps for want of memory"
    assert kept["killed"]["side_by_side"] == 2

    found = compare(path, "--jobs", "2")
    assert before.items() <= records(path).items()
    assert len(records(path)) == 4
    assert [row(found, label)["steps"] for label in ("whole", "third", "fourth")] == [10, 60, 60]


def read_to(child: subprocess.Popen[str], words: str) -> None:
    assert child.stdout is not None
    assert any(words in line for line in child.stdout), "it ended before"


def runs_of(parent: subprocess.Popen[str]) -> list[psutil.Process]:
    """Its runs, the first one first: children of the process that they are forked from."""
    family = psutil.Process(parent.pid).children(recursive=True)
    runs = [one for one in family if one.ppid() != parent.pid]
    return sorted(runs, key=lambda one: one.create_time())


@pytest.mark.parametrize("jobs", [0, -1])
def test_less_than_one_is_refused_in_one_line(
    jobs: int, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = spec(tmp_path, [{"method": "zero_shot"}])
    assert command(monkeypatch, "compare", path, "--jobs", jobs) == 2
    assert capsys.readouterr().err == f"error: jobs is {jobs}: give 1 or more\n"
