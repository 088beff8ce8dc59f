"""The quickstart as a benchmark: `python benchmarks quickstart`.

Runs `greentrainer quickstart` in a folder of its own and keeps its bill.  Full fine-tuning's
seconds are those of a few batches, scaled by FLOPs to the whole run; shares are within this run.
"""

import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from shared.results import check, write

from greentrainer.hf import load, save_delta
from greentrainer.report import spent_seconds
from greentrainer.run import CONFIG
from greentrainer.run.quickstart import quickstart

MINUTES = 8
NOTE = (
    "Seconds of full fine-tuning are estimated from a few measured batches of the same run; peak "
    "memory is measured in a process of its own for full fine-tuning, and includes evaluation for "
    "neither."
)


def rows_of(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """One row a method."""
    bill, full = summary["bill"], summary["full_fine_tuning"]
    seconds = spent_seconds(bill)
    return [
        {
            "method": "full fine-tuning",
            "flops": bill["full_flops"],
            "seconds": full["estimated_seconds"],
            "peak_memory_bytes": full["peak_memory_bytes"],
        },
        {
            "method": f"green, rho {bill['rho']:g}",
            "flops": bill["spent_flops"],
            "probe_flops": bill["probe_flops"],
            "seconds": seconds,
            "peak_memory_bytes": bill["peak_memory_bytes"],
            "flops / full": bill["rho_spent"],
            "seconds / full": seconds / full["estimated_seconds"],
            "memory / full": bill["peak_memory_bytes"] / full["peak_memory_bytes"],
        },
        {"method": "before", **_quality(summary["before"])},
        {"method": "after", **_quality(summary["after"])},
    ]


def _quality(result: dict[str, Any]) -> dict[str, Any]:
    return {"loss": result["loss"], "rougeL": result["rougeL"]}


def delta_row(base: str, trained: Path, folder: Path) -> dict[str, Any]:
    """The size of a checkpoint that holds only what changed."""
    written = save_delta(load(str(trained))[0], load(base)[0], folder)
    return {
        "method": "delta checkpoint",
        "tensors": len(written.tensors),
        "bytes": written.bytes,
        "bytes / full": written.share,
    }


def main() -> None:
    """Run it and write its figures down."""
    with tempfile.TemporaryDirectory() as folder:
        config = CONFIG.model_copy(update={"output_dir": Path(folder) / "run"})
        start = time.perf_counter()
        summary = quickstart(config, Console())
        minutes = (time.perf_counter() - start) / 60
        delta = delta_row(config.model, config.output_dir / "model", Path(folder) / "delta")
    rows = [*rows_of(summary), delta]
    bill = summary["bill"]
    checks = [
        check("minutes, all told", minutes, MINUTES),
        check("share of full fine-tuning's FLOPs", bill["rho_spent"], bill["rho"]),
        check("share of the budget used", bill["rho_spent"] / bill["rho"], 0.97, at_most=False),
        check("held-out loss after / before", rows[3]["loss"] / rows[2]["loss"], 1.0),
    ]
    write("quickstart", rows, checks, seeds=[config.seed], note=NOTE)
