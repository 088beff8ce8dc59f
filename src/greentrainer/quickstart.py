"""The main job in one command: a real model, real text, half the FLOPs, and the bill.

Full fine-tuning is measured on a few batches of the same run, in a process of its own so that its
memory can be told apart.
"""

import multiprocessing
from pathlib import Path
from typing import Any

from rich.console import Console

from greentrainer import runs
from greentrainer.bill import bill_table
from greentrainer.config import RunConfig
from greentrainer.training import Plan

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
    output_dir=Path("runs/quickstart"),
)
FULL_BATCHES = 4
"""Batches of full fine-tuning that are measured; the first is left out of the median."""


def quickstart(config: RunConfig, console: Console) -> dict[str, Any]:
    """Run it and print the bill; returns the run's summary."""
    full = full_fine_tuning(config, console)
    summary = runs.execute(config, console)
    if full:
        summary["full_fine_tuning"] = full | {
            "estimated_seconds": full["seconds_per_flop"] * summary["bill"]["full_flops"]
        }
        runs.write_json(config.output_dir / "metrics.json", summary)
    console.print(bill_table(summary))
    return summary


def full_fine_tuning(config: RunConfig, console: Console) -> dict[str, Any] | None:
    """Seconds and peak memory of full fine-tuning, measured on a few batches."""
    console.print(f"measuring full fine-tuning on {FULL_BATCHES} batches, for comparison")
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_measure_full, (config,))


def _measure_full(config: RunConfig) -> dict[str, Any]:
    console = Console(quiet=True)
    material = runs.prepare(config, console)
    batches = runs.batches_of(material, config, "train")[:FULL_BATCHES]
    plan = Plan(epochs=[batches], rho=1.0, learning_rate=config.learning_rate, seed=config.seed)
    _, engine, peak = runs.train(material, plan, console)
    timed = [entry for entry in engine.ledger if entry.kind == "train"][1:]
    return {
        "batches": len(batches),
        "seconds_per_batch": runs.batch_seconds(engine),
        "seconds_per_flop": sum(e.seconds for e in timed) / sum(e.flops for e in timed),
        "peak_memory_bytes": peak,
    }
