"""The main job in one command: a real model, real text, half the FLOPs, and the bill.

Full fine-tuning is measured on a few batches of the same run, in a process of its own so that its
memory can be told apart.
"""

import multiprocessing
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from greentrainer import runs
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
    batches = [batch for epoch in material.epochs for batch in epoch][:FULL_BATCHES]
    plan = Plan(epochs=[batches], rho=1.0, learning_rate=config.learning_rate, seed=config.seed)
    _, engine, peak = runs.train(material, plan, console)
    timed = [entry for entry in engine.ledger if entry.kind == "train"][1:]
    return {
        "batches": len(batches),
        "seconds_per_batch": runs.batch_seconds(engine),
        "seconds_per_flop": sum(e.seconds for e in timed) / sum(e.flops for e in timed),
        "peak_memory_bytes": peak,
    }


def bill_table(summary: dict[str, Any]) -> Table:
    """What was spent beside what full fine-tuning would have, and the quality before and after."""
    bill, full = summary["bill"], summary.get("full_fine_tuning")
    table = Table(title=f"the bill at rho {bill['rho']:g}", title_justify="left")
    for column in ("", "green", "full fine-tuning", "share"):
        table.add_column(column, justify="left" if not column else "right")
    spent, reference = bill["spent_flops"], bill["full_flops"]
    table.add_row("FLOPs", _tera(spent), _tera(reference), f"{bill['rho_spent']:.1%}")
    table.add_row("  of them probes", _tera(bill["probe_flops"]), "-", f"{bill['probe_share']:.1%}")
    seconds = bill["train_seconds"] + bill["probe_seconds"] + bill["select_seconds"]
    if full:
        table.add_row(
            f"seconds (full: from {full['batches']} batches)",
            f"{seconds:.0f}",
            f"{full['estimated_seconds']:.0f}",
            f"{seconds / full['estimated_seconds']:.1%}",
        )
        table.add_row(
            "peak memory, GB",
            f"{bill['peak_memory_bytes'] / 1e9:.2f}",
            f"{full['peak_memory_bytes'] / 1e9:.2f}",
            f"{bill['peak_memory_bytes'] / full['peak_memory_bytes']:.1%}",
        )
    table.add_section()
    table.add_row("", "before", "after", "")
    before, after = summary["before"], summary.get("after")
    for label, key, digits in (("held-out loss per token", "loss", 4), ("ROUGE-L", "rougeL", 2)):
        if key in before:
            later = f"{after[key]:.{digits}f}" if after else "interrupted"
            table.add_row(label, f"{before[key]:.{digits}f}", later, "")
    return table


def _tera(flops: float) -> str:
    return f"{flops / 1e12:.2f} T"
