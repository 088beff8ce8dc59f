"""Whole runs by the clock on the wall: `python benchmarks whole_runs --data-dir FOLDER`.

SmolLM2 on SciTLDR, from the command to the checkpoint: full fine-tuning; `--rho 0.5` with nothing
kept from before, and once more; full fine-tuning that stops at half; and `--hours` of half, 1.2, 2
and 5 times what full fine-tuning's training took.  One after the other, with the program's own
defaults, each in a process of its own; reading the weights is in all of them.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from shared.results import check, write

from greentrainer.hf import cache_root

Row = dict[str, Any]

RHO = 0.5
TIMES = (0.5, 1.2, 2.0, 5.0)
"""Of the seconds that full fine-tuning trains for."""
WHOLE = {"cuda": (0.65, 0.58), "cpu": (0.60, 0.60)}
"""Most that a run at `RHO` may take of full fine-tuning's wall clock: the first, and the second."""
FIXED = {"cuda": (3.0, 1.0), "cpu": (6.0, 2.0)}
"""Most seconds that getting ready may take."""
EARLY = f"full stopped at {TIMES[0]:g}"
COLUMNS = ("run", "wall", "wall / full", "seconds", "ready", "choosing", "steps", "flops", "loss")


@dataclass(frozen=True)
class Setting:
    """What all runs share: flags, and the cache folder they look into."""

    flags: tuple[str, ...]
    folder: Path
    cache: Path

    def run(self, name: str, *flags: str) -> Row:
        """One command; what it took, and what its bill says."""
        out = self.folder / name.replace(" ", "_")
        command = [sys.executable, "-m", "greentrainer.cli", "train", *self.flags, *flags]
        command += ["--output-dir", str(out)]
        start = time.perf_counter()
        done = subprocess.run(
            command, check=False, capture_output=True, text=True,
            env=os.environ | {"GREENTRAINER_CACHE": str(self.cache)},
        )  # fmt: skip
        wall = time.perf_counter() - start
        if done.returncode:
            sys.exit(f"{name}: {done.stderr.strip()[-400:]}")
        metrics = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
        row = row_of(name, wall, metrics)
        print(f"{name}: {wall:.1f} s, loss {row['loss']:.4f}", flush=True)
        return row


def row_of(name: str, wall: float, metrics: Row) -> Row:
    """seconds: of training.  choosing: of these, probes and selections.  ready: all but steps."""
    bill = metrics["bill"]
    choosing = bill["probe_seconds"] + bill["select_seconds"]
    return {
        "run": name,
        "wall": wall,
        "seconds": bill["used_seconds"],
        "ready": bill["used_seconds"] - bill["train_seconds"] - choosing,
        "training": bill["train_seconds"],
        "choosing": choosing,
        "steps": f"{bill['steps']}/{bill['steps_asked']}",
        "flops": bill["share_of_plain_full"],
        "loss": metrics["after"]["loss"],
    }


def with_weights(cache: Path) -> Path:
    """A cache folder that holds the rebuilt weights, and nothing else that was kept."""
    cache.mkdir(parents=True)
    for one in cache_root().glob("smollm2*"):
        (cache / one.name).symlink_to(one)
    return cache


def measured(setting: Setting, rows: list[Row], times: Sequence[float]) -> None:
    """All runs, full fine-tuning first; each is in `rows` as soon as it has ended."""
    setting.run("warming up", "--method", "full", "--train-limit", "16")  # files come to memory
    full = setting.run("full", "--method", "full")
    rows.append(full)
    rows.append(setting.run("rho, nothing kept", "--rho", str(RHO)))
    rows.append(setting.run("rho, again", "--rho", str(RHO)))
    if times:
        early = ("--method", "full_at_budget", "--rho", str(TIMES[0]))
        rows.append(setting.run(EARLY, *early))
    for one in times:
        hours = one * full["seconds"] / 3600
        rows.append(setting.run(f"hours {one:g}", "--hours", f"{hours:.6f}") | {"times": one})


def compared(rows: list[Row]) -> None:
    """Enter what each is of full fine-tuning."""
    full = rows[0]
    for row in rows:
        row["wall / full"] = row["wall"] / full["wall"]
        row["ready"] -= full["ready"] if row is not full else 0.0
        row["loss / full"] = row["loss"] / full["loss"]
        if "times" in row:
            row["seconds / given"] = row["seconds"] / (row["times"] * full["seconds"])


def checks_of(rows: list[Row], device: str) -> list[Row]:
    """What the project promises, of whatever was measured."""
    named = {row["run"]: row for row in rows}
    pair = [row for row in rows if row["run"].startswith("rho")]
    found = []
    for row, most, ready in zip(pair, WHOLE[device], FIXED[device], strict=False):
        found.append(check(f"{row['run']}: wall / full", row["wall / full"], most))
        found.append(
            check(f"{row['run']}: getting ready, seconds more than full", row["ready"], ready)
        )
        share = row["choosing"] / row["training"]
        found.append(check(f"{row['run']}: choosing / training", share, 0.01))
    for row in rows:
        if "times" in row:
            short = row["times"] < 1
            name = row["run"]
            found.append(
                check(f"{name}: seconds / given", row["seconds / given"], 1.05 if short else 1)
            )
            most = named[EARLY]["loss / full"] if short else 1.01
            found.append(check(f"{name}: loss / full", row["loss / full"], most))
    return found


def main() -> None:
    """Run everything; write `results/whole_runs.json`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", type=Path, help="folder that holds the data sets' folders")
    parser.add_argument("--rows", type=int, default=1024)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--times", type=float, nargs="*", default=TIMES, help="of --hours")
    parser.add_argument("--held-out", type=int, default=64, help="rows that losses are of")
    asked = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    flags = ["--task", "scitldr", "--train-limit", str(asked.rows), "--generate", "0"]
    flags += ["--set", f"batch_size={asked.batch_size}", "--set", f"test_limit={asked.held_out}"]
    if asked.data_dir:
        flags += ["--data-dir", str(asked.data_dir / "scitldr")]
    rows: list[Row] = []
    note = (
        f"SmolLM2-135M on {asked.rows} abstracts of SciTLDR, batches of {asked.batch_size}. wall: "
        "from the command to its end. seconds: of training, with all that belongs to it. ready: "
        "seconds outside of steps and choosing, beyond full fine-tuning's. loss: of "
        f"{asked.held_out} others."
    )
    try:
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            measured(
                Setting(tuple(flags), folder, with_weights(folder / "cache")), rows, asked.times
            )
    finally:
        if rows:
            compared(rows)
            write("whole_runs", rows, checks_of(rows, device), [0], note, device=device)
