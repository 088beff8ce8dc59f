"""Runs within a limit of memory: `python benchmarks memory --data-dir FOLDER`.

SmolLM2 on SciTLDR on a processor core: full fine-tuning and LoRA as they are, and `--memory` of
shares of what full fine-tuning takes.  Each run is a process of its own, and what it took is the
most that was resident while it trained.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from shared.results import check, write

Row = dict[str, Any]

SHARES = (0.75, 0.6, 0.5, 0.4)
"""Of full fine-tuning's peak."""
CLOSE = 0.85
"""Least of a limit that a run which had to leave tensors out should make use of."""


def run(flags: list[str], folder: Path, name: str, *more: str) -> Row:
    """One command; what its bill says."""
    out = folder / name
    command = [sys.executable, "-m", "greentrainer.cli", "train", *flags, *more]
    log = folder / f"{name}.log"
    with log.open("w", encoding="utf-8") as told:
        done = subprocess.Popen([*command, "--output-dir", str(out)], stdout=told, stderr=told)
        _, status, usage = os.wait4(done.pid, 0)
    if status:
        sys.exit(f"{name}: {log.read_text(encoding='utf-8').strip()[-400:]}")
    metrics = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    bill, way = metrics["bill"], metrics["bill"]["memory"] or {}
    names = way.get("names")
    row = {
        "run": name,
        "limit": way.get("limit"),
        "told": way.get("told"),
        "peak": bill["peak_memory_bytes"],
        "whole process": usage.ru_maxrss * 1024,
        "updates": way.get("updates", "step"),
        "rows": way.get("rows"),
        "tail": way.get("tail"),
        "adapters": way.get("adapters"),
        "tensors": len(names) if names else bill["tensors"],
        "flops / full": bill["share_of_plain_full"],
        "loss": metrics["after"]["loss"],
    }
    print(f"{name}: peak {row['peak'] / 1e9:.2f} GB, loss {row['loss']:.4f}", flush=True)
    return row


def checks_of(rows: list[Row]) -> list[Row]:
    """What the project promises."""
    found = []
    for row in rows:
        if row["limit"]:
            found.append(check(f"{row['run']}: peak / limit", row["peak / limit"], 1))
            told = abs(row["peak"] / row["told"] - 1)
            found.append(check(f"{row['run']}: peak told wrong by", told, 0.05))
    tight = next((row for row in rows if row["run"].endswith("tensors")), None)
    if tight is not None:
        share = tight["peak / limit"]
        found.append(check("fewer tensors: made use of the limit", share, CLOSE, False))
    return found


def main() -> None:
    """Run everything; write `results/memory.json`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", type=Path, help="folder that holds the data sets' folders")
    parser.add_argument("--rows", type=int, default=96)
    parser.add_argument("--held-out", type=int, default=32, help="rows that losses are of")
    asked = parser.parse_args()
    flags = ["--task", "scitldr", "--train-limit", str(asked.rows), "--generate", "0"]
    flags += ["--max-length", "256", "--batch-size", "4", "--test-limit", str(asked.held_out)]
    if asked.data_dir:
        flags += ["--data-dir", str(asked.data_dir / "scitldr")]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        rows = [run(flags, folder, "full", "--method", "full")]
        lora = ("--method", "lora", "--learning-rate", "1e-3")
        rows.append(run(flags, folder, "lora", *lora, "--set", "lora_targets=all-linear"))
        peak = rows[0]["peak"]
        for share in SHARES:
            name = f"green within {share:g}"
            limit = str(int(share * peak))
            rows.append(run(flags, folder, name, "--rho", "0.6", "--memory", limit))
        last = ("--rho", "0.6", "--memory", limit, "--set")
        rows.append(run(flags, folder, f"{name}, tensors", *last, "fewer=tensors"))
        rows.append(run(flags, folder, f"{name}, bfloat16", *last, "weights=bfloat16"))
    for row in rows:
        row["peak / full"] = row["peak"] / peak
        if row["limit"]:
            row["peak / limit"] = row["peak"] / row["limit"]
    note = (
        f"SmolLM2-135M, fp32, {asked.rows} abstracts of SciTLDR cut to 256 tokens, one pass in "
        "batches of 4 on processor cores. Bytes are those of the whole process, Python and its "
        f"libraries included. loss: of {asked.held_out} others; learning rates are not tuned, so "
        "losses are no comparison of methods."
    )
    write("memory", rows, checks_of(rows), [0], note)


if __name__ == "__main__":
    main()
