"""Steps timed uncompiled and compiled, and whole runs by the clock on the wall: that they run."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hardware import seconds, whole_runs

ROOT = Path(__file__).resolve().parents[2]
Row = dict[str, Any]


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    """What the smoke run prints."""
    paths = os.pathsep.join(str(ROOT / folder) for folder in ("src", "benchmarks"))
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks"), "seconds", "--smoke", "--warmup", "1", "--steps",
         "1"],
        capture_output=True, text=True, check=False, timeout=500,
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": paths},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


@pytest.mark.thorough
def test_every_way_has_a_row(found: dict[str, Any]) -> None:
    kinds = {(row["model"], row["compiled"], row["method"]) for row in found["rows"]}
    methods = ("full", "lora", "green", "positions", "early")
    assert kinds == {
        (model, compiled, method)
        for model in ("opt-2.7b", "qwen3-1.7b")
        for compiled in (False, True)
        for method in methods
    }
    for row in found["rows"]:
        assert "skipped" not in row
        assert row["method"] == "early" or row["counted"] == row["flops"]
        assert row["compiled"] or row["launches"] > 0


def row(method: str, share: float, launches: float = 1.0, **more: Any) -> Row:
    given = {"model": "opt-2.7b", "compiled": False, "rows": 16, "length": 512, **more}
    return {"method": method, "seconds / full": share, "launches / full": launches, **given}


@pytest.mark.parametrize(
    ("name", "worse"),
    [
        ("opt-2.7b, uncompiled, 16 x 512: seconds / full", row("positions", 0.51)),
        ("seconds / full, positions", row("positions", 1.01, model="llama-1b")),
        ("launches / full, positions, uncompiled", row("positions", 0.4, 1.2)),
        ("rows left out", row("lora", 0.4) | {"skipped": "why"}),
    ],
)
def test_checks_can_fail(name: str, worse: Row) -> None:
    def holds(rows: list[Row]) -> bool:
        return bool(next(c["holds"] for c in seconds.checks_of(rows) if c["name"] == name))

    good = row("positions", 0.49)
    assert holds([good])
    assert not holds([good, worse])


def test_checks_of_whole_runs_can_fail() -> None:
    def ran(name: str, **more: Any) -> Row:
        usual = {"wall / full": 0.5, "ready": 1.0, "training": 10.0, "choosing": 0.0}
        return {
            "run": name,
            "loss": 1.0,
            "loss / full": 1.0,
            "seconds / given": 1.0,
            **usual,
            **more,
        }

    names = ("full", "rho, nothing kept", "rho, again", "full stopped at 0.5")
    good = [*(ran(name) for name in names), ran("hours 0.5", times=0.5), ran("hours 2", times=2.0)]
    assert all(check["holds"] for check in whole_runs.checks_of(good, "cpu"))
    for at, harm in (
        (1, {"wall / full": 0.61}), (2, {"ready": 2.5}), (1, {"choosing": 0.2}),
        (4, {"loss / full": 1.1}), (4, {"seconds / given": 1.06}), (5, {"loss / full": 1.02}),
        (5, {"seconds / given": 1.01}),
    ):  # fmt: skip
        worse = [one | harm if n == at else one for n, one in enumerate(good)]
        assert not all(check["holds"] for check in whole_runs.checks_of(worse, "cpu"))
