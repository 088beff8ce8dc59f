"""Predicted against measured: `python benchmarks/plan.py --data-dir FOLDER`.

SmolLM2 on SciTLDR. A clock is set by a few passes; then runs at several rho are made, each in a
process of its own, with full fine-tuning again between them, since a machine's pace drifts. Seconds
a step are told by the clock for what each run really chose, and by the plan for what it would
choose; memory is told by one pass under fake tensors. Seconds are medians without the first steps,
in one run on one machine; memory is the resident memory of the process above what it was before
the model was loaded.
"""

import argparse
import multiprocessing
import statistics
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import psutil
from provenance import check, write
from rich.console import Console

from greentrainer import runs
from greentrainer.config import RunConfig
from greentrainer.hf.clocks import saved_clock
from greentrainer.memory import step_memory
from greentrainer.plan import Planner

Row = dict[str, Any]

RHO = (0.4, 0.5, 0.7, 1.0)
ROWS, WARM_UP = 64, 3
NOTE = (
    "SmolLM2-135M on SciTLDR, batches of 4, at most 256 tokens, gradient through all positions, "
    "the labelled head, one selection; the same 16 batches in every run."
)


def config_of(folder: Path, data_dir: Path | None, rho: float) -> RunConfig:
    """One run."""
    return RunConfig(
        task="scitldr", data_dir=data_dir, rho=rho, train_limit=ROWS, test_limit=4, generate=0,
        max_length=256, pad_multiple=64, selections=1, probe_batches=1, positions="all",
        labelled_head=True, output_dir=folder,
    )  # fmt: skip


def measured(config: RunConfig) -> Row:
    """A run: seconds a step, and what the clock and the fake pass tell of its last selection."""
    console = Console(quiet=True)
    before = psutil.Process().memory_info().rss
    material = runs.prepare(config, console)
    outcome, peak = runs.train(config, material, console)
    engine = outcome.engine
    assert engine.selection is not None
    clock = saved_clock(material.model, next(material.model.parameters()).device, config.bf16)
    assert clock is not None
    planner = Planner(config)
    told = step_memory(planner.network, planner.data.sample, engine.selection.names)
    entries = [entry for entry in engine.ledger if entry.kind == "train"][WARM_UP:]
    passes = clock.seconds(planner.graph, engine.selection.names)
    return {
        "rho": config.rho,
        "tensors": len(engine.selection.names),
        "seconds": [entry.seconds for entry in entries],
        "told for the choice": passes,
        "peak_bytes": peak - before,
        "told_bytes": told.total,
    }


def apart(config: RunConfig) -> Row:
    """The same in a process of its own."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(measured, config).result()


def main() -> None:
    """Run, and write the figures down."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data-dir", type=Path, help="the data set's files; the hub's without it")
    asked = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        planner = Planner(config_of(Path(folder), asked.data_dir, 1.0))
        clock = planner.calibrate()
        planned = {row.rho: row for row in planner.rows()}
        for rho in RHO:
            found = apart(config_of(Path(folder) / f"{rho}", asked.data_dir, rho))
            seconds = found["seconds"]
            median = statistics.median(seconds)
            rows.append(
                {
                    "rho": rho,
                    "tensors": found["tensors"],
                    "told / measured seconds": found["told for the choice"] / median,
                    "planned / measured seconds": (planned[rho].seconds or 0.0) / median,
                    "measured, quartiles / median": [
                        q / median for q in statistics.quantiles(seconds, n=4)[::2]
                    ],
                    "told / measured memory": found["told_bytes"] / found["peak_bytes"],
                    "measured GB": found["peak_bytes"] / 1e9,
                    "told GB": found["told_bytes"] / 1e9,
                }
            )
            print(rows[-1], flush=True)
    checks = []
    for row in rows:
        for what, key, target in (
            ("seconds a step", "told / measured seconds", 0.1),
            ("seconds a step, planned", "planned / measured seconds", 0.1),
            ("peak memory", "told / measured memory", 0.15),
        ):
            checks.append(check(f"rho {row['rho']:g}: {what} off by", abs(row[key] - 1), target))
    write("plan", rows, checks, [0], NOTE, clock={"deviation": clock.deviation})


if __name__ == "__main__":
    main()
