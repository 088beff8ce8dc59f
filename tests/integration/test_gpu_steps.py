"""The steps timed on a GPU, run on two-layer models where pydantic and its like are missing."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from hardware import full_size, gpu_steps
from paper.paper_models import CONFIGS

ROOT = Path(__file__).resolve().parents[2]
ABSENT = ("pydantic", "datasets", "rouge_score")
BLOCKED = f"""
import runpy, sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {ABSENT!r}:
            raise ModuleNotFoundError("blocked: " + name, name=name)
sys.meta_path.insert(0, Blocker())
sys.argv = ["benchmarks", "gpu_steps", "--smoke", "--warmup", "1", "--steps", "2", *sys.argv[1:]]
runpy.run_path({str(ROOT / "benchmarks")!r}, run_name="__main__")
"""
"""Runs the benchmark as a script; importing what is absent fails, wherever it is tried."""

Row = dict[str, Any]


def smoke(*arguments: str) -> dict[str, Any]:
    """What the smoke run prints."""
    paths = os.pathsep.join(str(ROOT / folder) for folder in ("src", "benchmarks"))
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED, *arguments],
        capture_output=True, text=True, check=False, timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": paths},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    return smoke()


def steps(rows: list[Row], precision: str) -> list[Row]:
    return [row for row in rows if row["what"] == "step" and row["precision"] == precision]


def holds(rows: list[Row], name: str) -> bool:
    """Whether that promise is kept by these rows."""
    (kept,) = [check["holds"] for check in gpu_steps.checks_of(rows) if check["name"] == name]
    return bool(kept)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_method_has_a_row(found: dict[str, Any], precision: str) -> None:
    rows = steps(found["rows"], precision)
    methods = {(row["method"], row["rho"] or row.get("tail")) for row in rows}
    assert methods == {
        *(("positions", 4 * eighths) for eighths in gpu_steps.TAILS),
        *((method, None) for method in ("full", "top2", "lora", "prefix")),
        *(("green", rho) for rho in gpu_steps.RHOS),
    }
    assert len(rows) == len(methods)
    once = {row["what"] for row in found["rows"] if row["precision"] == precision}
    assert once == {"step", "trace", "probe, 1 batch", "select", "step by the engine"}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_shares(found: dict[str, Any], precision: str) -> None:
    rows = [row for row in steps(found["rows"], precision) if "skipped" not in row]
    full = next(row for row in rows if row["method"] == "full")
    assert full["flops / full"] == full["seconds / full"] == full["memory / full"] == 1
    assert all(row["flops / full"] < 1 for row in rows if row is not full)
    green = [row for row in rows if row["method"] == "green"]
    assert {0.5, 0.6, 0.7, 0.8} <= {row["rho"] for row in green}
    assert all(row["flops / full"] <= row["rho"] for row in green)
    assert all(row["steps"] == 2 * full_size.ROUNDS and row["seconds"] > 0 for row in rows)


def test_the_graph_tells_what_ran(found: dict[str, Any]) -> None:
    rows = [row for row in found["rows"] if "counted" in row]
    assert rows
    assert all(row["counted"] == row["flops"] for row in rows)


def test_rho_below_the_smallest_is_told(found: dict[str, Any]) -> None:
    (least,) = {row["skipped"] for row in found["rows"] if "skipped" in row}
    smallest = float(least.rsplit(maxsplit=1)[1])
    skipped = {row["rho"] for row in found["rows"] if "skipped" in row}
    assert skipped == {rho for rho in gpu_steps.RHOS if rho < smallest}


@pytest.mark.thorough
def test_no_time_is_told() -> None:
    found = smoke("--budget-seconds", "0")
    assert {row["skipped"] for row in found["rows"]} == {full_size.NO_TIME}
    assert found["settings"]["cut short by the budget"]
    (check,) = [c for c in found["checks"] if c["name"] == "rows left out for want of time"]
    assert not check["holds"]


@pytest.mark.parametrize(
    ("name", "figure", "more"),
    [
        ("FLOPs' share beyond rho", "flops / full", 0.5),
        ("counted FLOPs off the graph's", "counted", 2),
        ("seconds' share beyond FLOPs' share, rho 0.5", "seconds / full", 2.0),
        ("memory / full, rho 0.5", "memory / full", 1.0),
    ],
)
def test_checks_can_fail(found: dict[str, Any], name: str, figure: str, more: float) -> None:
    row = next(r for r in found["rows"] if r.get("method") == "green" and r["rho"] == 0.5)
    well = {**row, "seconds / full": 0.5, "memory / full": 0.5}
    assert holds([well], name)
    assert not holds([{**well, figure: well[figure] + more}], name)


def test_what_cannot_fit_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(full_size, "bytes_available", lambda: 80 * 10**9)
    monkeypatch.setattr(full_size.Case, "build", pytest.fail)
    config: tf.OPTConfig = CONFIGS["opt-6.7b"]()
    case = full_size.Case("opt-6.7b", config, "fp32", 4, 512, torch.device("cpu"))
    (row,) = gpu_steps.measured(case, full_size.Allowance(100.0, 1, 1))
    assert row["method"] == "full"
    assert row["skipped"].startswith("needs about 126 GB of 80 GB")
    small = full_size.Case("opt-6.7b", config, "bf16", 4, 512, torch.device("cpu"))
    assert not full_size.misfit(small, 6_658_473_984, 6_658_473_984)


def test_running_out_of_memory_is_told() -> None:
    def work() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.\nof 80 GiB")

    assert full_size.attempted(work) == "out of memory: CUDA out of memory."
    assert full_size.attempted(lambda: 3) == 3


def test_adapters_come_off() -> None:
    config = gpu_steps.cases(smoke=True, attention="sdpa")[0].config
    model = full_size.Case("opt-tiny", config, "fp32", 2, 8, torch.device("cpu")).build()
    before = list(model.named_parameters())
    for worn in ("lora", "prefix", "lora"):
        with full_size.wearing(model, worn) as wrapped:
            assert 0 < sum(p.requires_grad for p in wrapped.parameters()) < len(before)
        after = list(model.named_parameters())
        assert [name for name, _ in after] == [name for name, _ in before]
        assert all(p is q and q.requires_grad for (_, p), (_, q) in zip(before, after, strict=True))
