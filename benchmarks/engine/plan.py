"""Predicted against measured: `python benchmarks plan --data-dir FOLDER`.

SmolLM2 on SciTLDR. A clock is set by a few passes; then runs at several rho are made, each in a
process of its own. Seconds a step are told by the clock for what each run really chose, and by the
plan for what it would choose; they are of a batch of average size, means without the first steps.
Memory is told by passes under fake tensors; measured, it is the resident memory of the process
above that of libraries and data, in a second run whose allocator gives freed memory back at once:
glibc as it comes keeps some, which is shown beside it. On a GPU it is torch's peak of allocated
bytes, and the figures go to `results/plan_gpu.json`. All in one run on one machine.
"""

import argparse
import multiprocessing
import os
import statistics
import tempfile
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import torch
from rich.console import Console
from shared.results import check, write

from greentrainer.config import RunConfig
from greentrainer.plan import Planner
from greentrainer.run import run as runs

Row = dict[str, Any]

FRUGAL = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
"""glibc gives freed memory back at once, at the price of page faults."""
RHO = (0.4, 0.5, 0.7, 1.0)
BATCHES, WARM_UP = 16, 3
NOTE = (
    "SmolLM2-135M on SciTLDR, batches of {batch}, at most 256 tokens, gradient through all "
    "positions, the labelled head, one selection; the same {batches} batches in every run."
)
GPU = torch.cuda.is_available()


def config_of(folder: Path, asked: argparse.Namespace, rho: float) -> RunConfig:
    """One run."""
    return RunConfig(
        task="scitldr", data_dir=asked.data_dir, rho=rho, batch_size=asked.batch_size,
        train_limit=BATCHES * asked.batch_size, test_limit=4, generate=0,
        max_length=256, pad_multiple=64, selections=1, probe_batches=1, positions="all",
        steps="all", labelled_head=True, output_dir=folder,
    )  # fmt: skip


def measured(config: RunConfig) -> Row:
    """A run: seconds a step, and what the clock and the fake pass tell of its last selection."""
    console = Console(quiet=True)
    inputs = runs.prepare(config, console)
    weights = sum(p.numel() * p.element_size() for p in inputs.model.parameters())
    for parameter in inputs.model.parameters():
        parameter.detach().sum()  # what is read from a file takes no memory before
    runs.release_memory()
    before = held() - weights
    outcome, peak = runs.train(config, inputs, console)
    engine = outcome.engine
    assert engine.selection is not None
    planner = Planner(config)
    planner.look_up()
    entries = [entry for entry in engine.ledger if entry.kind == "train"][WARM_UP:]
    mean = statistics.mean(entry.full_flops for entry in entries)
    average = planner.data.full_flops / planner.data.batches / mean
    return {
        "tensors": len(engine.selection.names),
        "seconds": [average * entry.seconds for entry in entries],
        "told_seconds": planner.seconds(engine.selection.names),
        "bytes": peak - before,
        "told_bytes": planner.memory(engine.selection.names).total,
    }


def held() -> int:
    """Bytes: allocated on the GPU, or resident."""
    return torch.cuda.memory_allocated() if GPU else int(psutil.Process().memory_info().rss)


def apart(config: RunConfig, environment: Mapping[str, str]) -> Row:
    """The same in a process of its own, with more in its environment."""
    context = multiprocessing.get_context("spawn")
    os.environ.update(environment)
    try:
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            return pool.submit(measured, config).result()
    finally:
        for name in environment:
            del os.environ[name]


def by_glibc(found: Row) -> Row:
    """Memory of a process whose allocator is glibc's as it comes."""
    return {
        "measured GB, glibc as it comes": found["bytes"] / 1e9,
        "the same, told / measured": found["told_bytes"] / found["bytes"],
    }


def main() -> None:
    """Run, and write the figures down."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data-dir", type=Path, help="the data set's files; the hub's without it")
    parser.add_argument("--batch-size", type=int, default=4)
    asked = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        planner = Planner(config_of(Path(folder), asked, 1.0))
        clock = planner.calibrate()
        planned = {row.rho: row for row in planner.rows()}
        for rho in RHO:
            found = apart(config_of(Path(folder) / f"{rho}", asked, rho), {})
            again = config_of(Path(folder) / f"{rho} frugal", asked, rho)
            frugal = found if GPU else apart(again, FRUGAL)
            seconds = found["seconds"]
            mean = statistics.mean(seconds)
            rows.append(
                {
                    "rho": rho,
                    "tensors": found["tensors"],
                    "told / measured seconds": found["told_seconds"] / mean,
                    "planned / measured seconds": (planned[rho].seconds or 0.0) / mean,
                    "seconds, sd / mean": statistics.stdev(seconds) / mean,
                    "told GB": frugal["told_bytes"] / 1e9,
                    "measured GB": frugal["bytes"] / 1e9,
                    "told / measured memory": frugal["told_bytes"] / frugal["bytes"],
                }
                | ({} if GPU else by_glibc(found))
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
    note = NOTE.format(batch=asked.batch_size, batches=BATCHES)
    name = "plan_gpu" if GPU else "plan"
    write(name, rows, checks, [0], note, clock={"deviation": clock.deviation})
