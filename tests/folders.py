"""Run folders as a run writes them, made up: what tests of the report and the card need."""

import json
from pathlib import Path
from typing import Any

from greentrainer.config import RunConfig

HOSTILE = "</text><script>alert('$x^{2}$')</script>\"&<b>"
"""A name that would be executed or typeset if anything let it."""


def tensors(blocks: int = 3, evil: str = "") -> list[dict[str, Any]]:
    """A small model's rows of `costs.json`, closest to the loss first."""
    rows = [{"name": f"norm{evil}", "block": None, "kind": f"norm{evil}", "flops": 0}]
    for block in reversed(range(blocks)):
        for kind in (f"down{evil}", "up"):
            name = f"layers.{block}.{kind}"
            rows.append({"name": name, "block": block, "kind": kind, "flops": 10**9})
    return [
        {**row, "elements": 64, "closure_flops": int(2e9 * i + int(row["flops"] or 0))}
        for i, row in enumerate(rows)
    ]


def selection(batch: int, names: list[str], measured: dict[str, float]) -> dict[str, Any]:
    """A line of `selections.jsonl`."""
    return {
        "batch": batch, "asked": bool(measured), "seconds": 0.01, "tail_saves_flops": 10**8,
        "optimum_at_most": 2.0 if measured else None, "names": names, "importance": 1.5,
        "backward_flops": 5 * 10**9, "backward_budget": 6e9, "tail": 8 if measured else None,
        "importances": measured,
    }  # fmt: skip


def folder(
    path: Path,
    status: str = "done",
    *,
    steps: int = 6,
    planned: int = 6,
    error: str | None = None,
    evil: str = "",
    blocks: int = 3,
    events: int = 3,
    bill: dict[str, Any] | None = None,
    **config: Any,
) -> Path:
    """A run's folder after so many steps; `bill` adds to its bill.  evil: part of every name."""
    path.mkdir(parents=True, exist_ok=True)
    own = tensors(blocks, evil)
    names = [row["name"] for row in own]
    task = {} if "tasks" in config else {"task": f"mine{evil}"}
    RunConfig(**{"model": f"tiny{evil}", **task, **config}).save(path / "config.yaml")
    hardware = {"cpu": f"cpu{evil}", "gpu": None}
    _json(path / "run.json", {
        "format": 1, "status": status, "error": error, "command": f"greentrainer train '{evil}'",
        "started": "2026-01-01T00:00:00+00:00", "updated": "2026-01-01T00:01:00+00:00",
        "ended": None if status == "running" else "2026-01-01T00:02:00+00:00",
        "resumed_at_step": None, "steps": steps, "planned_steps": planned,
        "provenance": {"hardware": hardware}, "data": {"train": 24, "validation": 0, "test": 8},
    })  # fmt: skip
    _json(path / "costs.json", {"forward_flops": 10**10, "full_backward_flops": 2 * 10**10,
                                "full_flops": 3 * 10**10, "tensors": own})  # fmt: skip
    entry = {"forward_flops": 10**10, "backward_flops": 5 * 10**9, "full_flops": 3 * 10**10,
             "skipped_flops": 0, "tokens": 64, "padded_tokens": 64, "tail_tokens": 64,
             "seconds": 0.5}  # fmt: skip
    _lines(path / "ledger.jsonl", [{"kind": "train", **entry} for _ in range(steps)])
    _lines(path / "steps.jsonl", [
        {"step": i, "loss": 3.0 - i / 10, "batches": i, "spent_flops": i * 15 * 10**9,
         "full_flops": i * 3 * 10**10, "at": "2026-01-01T00:00:30+00:00"}
        for i in range(1, steps + 1)
    ])  # fmt: skip
    _lines(path / "log.jsonl", [{"eval_loss": 2.5, "step": 3}])
    _lines(path / "selections.jsonl", [
        selection(i * steps // events, names[: i + 2],
                  {name: 0.1 * j for j, name in enumerate(names)} if i % 2 == 0 else {})
        for i in range(events)
    ])  # fmt: skip
    before = {"loss": 5.0, "rougeL": 10.0, "predictions": [f"nothing{evil}"]}
    metrics: dict[str, Any] = {"before": before}
    if status in ("done", "interrupted"):
        metrics["bill"] = _bill(steps, planned, status == "interrupted") | (bill or {})
    if status == "done":
        metrics["after"] = {"loss": 4.0, "rougeL": 20.0, "predictions": [f"much{evil}"]}
        _lines(path / "predictions.jsonl", [
            {"prompt": f"what?{evil}", "references": [f"this{evil}"], "prediction": f"much{evil}"}
        ])  # fmt: skip
    _json(path / "metrics.json", metrics)
    return path


def model(path: Path, **config: Any) -> Path:
    """The folder with a model's folder in it."""
    (path / "model").mkdir()
    _json(path / "model" / "config.json", config)
    return path


def _bill(steps: int, planned: int, interrupted: bool) -> dict[str, Any]:
    return {
        "method": "green", "rho": 0.5, "interrupted": interrupted, "steps": steps,
        "planned_steps": planned, "tensors": 7, "tensors_trained_last": 4,
        "peak_memory_bytes": 2 * 10**9, "trace_seconds": 1.0, "train_seconds": steps * 0.5,
        "probe_seconds": 0.5, "select_seconds": 0.1, "spent_flops": steps * 15 * 10**9,
        "full_flops": steps * 3 * 10**10, "plain_full_flops": planned * 3 * 10**10,
    }  # fmt: skip


def _json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def _lines(path: Path, rows: list[Any]) -> None:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
