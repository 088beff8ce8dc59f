"""The main job in one command: a real model, real text, half the FLOPs, and the bill.

Full fine-tuning is measured on a few batches of the same run, in a process of its own so that its
memory can be told apart.
"""

import multiprocessing
import shutil
import statistics
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from rich.console import Console

from greentrainer.config import RunConfig
from greentrainer.records import working, write_json
from greentrainer.report import bill_table, draw, write_card
from greentrainer.run.run import execute, prepare, train

CONFIG = RunConfig(
    model="smollm2-135m",
    task="pydoc",
    rho=0.5,
    learning_rate=2e-4,
    batch_size=4,
    max_length=256,
    train_limit=240,
    test_limit=64,
    selections=2,
    probe_batches=2,
    generate=24,
    steps="all",  # so that its published figures stay those of its command
    pad_multiple=64,
    output_dir=Path("runs/quickstart"),
    overwrite=True,
)
FULL_BATCHES = 8
"""Batches of full fine-tuning that are measured."""
WARM_UP = 2
"""Of these, left out of the median: memory is touched for the first time."""


def quickstart(config: RunConfig, console: Console, command: str | None = None) -> dict[str, Any]:
    """Run it and print the bill; returns the run's summary.  command: as of `run.execute`."""
    full = full_fine_tuning(config, console)
    summary = execute(config, console, command)
    if full:
        summary["full_fine_tuning"] = full | {
            "estimated_seconds": full["seconds_per_flop"] * summary["bill"]["full_flops"]
        }
        write_json(config.output_dir / "metrics.json", summary)
        write_card(config.output_dir)
        draw(config.output_dir)
    console.print(bill_table(summary))
    return summary


def full_fine_tuning(config: RunConfig, console: Console) -> dict[str, Any] | None:
    """Seconds and peak memory of full fine-tuning, measured on a few batches."""
    console.print(f"measuring full fine-tuning on {FULL_BATCHES} batches, for comparison")
    context = multiprocessing.get_context("spawn")
    try:
        with working("measuring"), ProcessPoolExecutor(1, mp_context=context) as pool:
            return pool.submit(_measure_full, config).result()
    except BrokenProcessPool:
        console.print("measuring it was cut short, perhaps for want of memory: no comparison")
        return None


def _measure_full(config: RunConfig) -> dict[str, Any]:
    console = Console(quiet=True)
    folder = config.output_dir / "full"
    config = config.model_copy(update={"method": "full", "output_dir": folder})
    outcome, peak = train(config, prepare(config, console), console, FULL_BATCHES)
    shutil.rmtree(folder, ignore_errors=True)
    timed = [entry for entry in outcome.engine.ledger if entry.kind == "train"][WARM_UP:]
    return {
        "batches": len(timed),
        "seconds_per_batch": statistics.median(entry.seconds for entry in timed),
        "seconds_per_flop": statistics.median(entry.seconds / entry.flops for entry in timed),
        "peak_memory_bytes": peak,
    }
