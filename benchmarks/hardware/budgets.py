"""Budgets in hours, kWh and grams on a real model and this machine's meter.

`python benchmarks budgets --data-dir FOLDER`: SmolLM2 on SciTLDR.  A run with rho 1 tells what
training takes here; then runs are told to take a share of its hours, energy and emission.  Where a
GPU's own counter is the meter, what it counted is held against its power, sampled apart.  Figures
of a GPU go to `results/budgets_gpu.json`, others to `results/budgets.json`.
"""

import argparse
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from shared.results import check, write

from greentrainer.config import RunConfig
from greentrainer.energy import GpuPower, visible_gpus
from greentrainer.run import RunResult
from greentrainer.run import run as runs

Row = dict[str, Any]

GPU = torch.cuda.is_available()
UNITS = ("hours", "kwh", "co2_grams")
SAMPLED = 0.05
NOTE = (
    "SmolLM2-135M on SciTLDR, {rows} rows of at most 256 tokens in batches of {batch}, one epoch, "
    "fp32, everything counted from the run's start: tracing, setting the clock, probes, training."
)


@dataclass
class Sampled:
    """Joules by a GPU's power, sampled apart from the meter; None where there is none."""

    joules: float | None = None


@contextmanager
def sampled() -> Iterator[Sampled]:
    """Samples power while it is open."""
    found, ended = Sampled(), threading.Event()
    if not GPU:
        yield found
        return
    import pynvml

    pynvml.nvmlInit()
    counters = [GpuPower(pynvml, pynvml.nvmlDeviceGetHandleByUUID(gpu)) for gpu in visible_gpus()]
    found.joules = 0.0

    def watch() -> None:
        while not ended.wait(SAMPLED):
            found.joules = (found.joules or 0.0) + sum(counter.read() for counter in counters)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        ended.set()
        thread.join()


@dataclass(frozen=True)
class Trained:
    """A run, and the joules sampled while it trained, where its meter is of the GPU alone."""

    outcome: RunResult
    sampled: float | None


def trained(asked: argparse.Namespace, folder: str, **budget: Any) -> Trained:
    """One run, without its evaluation."""
    config = RunConfig(
        task="scitldr", data_dir=asked.data_dir, train_limit=asked.rows, test_limit=4, generate=0,
        batch_size=asked.batch_size, max_length=256, pad_multiple=32, selections=2,
        probe_batches=1, output_dir=Path(folder), positions="all", steps="all", **budget,
    )  # fmt: skip
    console = Console(quiet=True)
    inputs = runs.prepare(config, console)
    with sampled() as power:
        outcome, _ = runs.train(config, inputs, console)
    return Trained(outcome, power.joules if outcome.energy.source == "NVML" else None)


def amounts(run: Trained) -> dict[str, float]:
    """What a run used, in each unit."""
    used = run.outcome.used
    return {"hours": used.seconds / 3600, "kwh": used.kwh, "co2_grams": used.grams}


def row_of(run: Trained, unit: str, given: float | None) -> Row:
    """What a run used of what it was given."""
    used, outcome = amounts(run), run.outcome
    counted = run.sampled and {"joules counted / sampled": outcome.energy.joules / run.sampled}
    return (counted or {}) | {
        "budget": unit,
        "given": given,
        "used": used[unit] if given else None,
        "used / given": used[unit] / given if given else None,
        "rho_spent": outcome.engine.ledger.rho_spent,
        "batches": outcome.engine.ledger.batches,
        **used,
        "meter": outcome.energy.source,
    }


def attempted(asked: argparse.Namespace, folder: str, unit: str, given: float) -> Row:
    """A run with a budget, or why it was refused."""
    try:
        return row_of(trained(asked, folder, **{unit: given}), unit, given)
    except ValueError as error:
        return {"budget": unit, "given": given, "refused": str(error)}


def main() -> None:
    """Measure, and write the figures down."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data-dir", type=Path, help="the data set's files; the hub's without it")
    parser.add_argument("--rows", type=int, default=160)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.6, 0.8])
    asked = parser.parse_args()
    rows, checks = [], []
    with tempfile.TemporaryDirectory() as folder:
        trained(asked, folder, rho=1.0)  # what only a process's first run has to wait for
        whole = trained(asked, folder, rho=1.0)
        rows.append(row_of(whole, "rho 1", None))
        print(rows[-1], flush=True)
        for unit in UNITS:
            for share in asked.shares:
                given = share * amounts(whole)[unit]
                rows.append(attempted(asked, folder, unit, given))
                print(rows[-1], flush=True)
                name = f"{unit} at {share:g} of training everything: off by"
                checks.append(check(name, abs(rows[-1].get("used / given", 0.0) - 1), 0.05))
    for row in rows:
        if "joules counted / sampled" in row:
            ratio = row["joules counted / sampled"]
            checks.append(check("energy counted off the power sampled by", abs(ratio - 1), 0.05))
    note = NOTE.format(rows=asked.rows, batch=asked.batch_size)
    write("budgets_gpu" if GPU else "budgets", rows, checks, [0], note)
