"""Reading and encoding many short rows, beside `datasets.map`: `python benchmarks data [--rows N]`.

Rows of about 25 tokens with SmolLM2's tokenizer, out of a file of JSON lines.  Each way runs in a
process of its own on one processor, and ours on all there are too (nothing kept); memory is what
its peak adds to what was there when the tokenizer was ready, in that process.  Ours is timed up to
the order of the first pass, and again with what was kept of the first time.  `--rows 1000` is a
trial, and writes nothing.
"""

import argparse
import json
import multiprocessing
import os
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from shared.results import check, write

ROWS, TRIAL = 1_000_000, 100_000


def rows_file(folder: Path, count: int) -> Path:
    """The file of rows."""
    path = folder / "rows.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for i in range(count):
            row = {
                "prompt": f"Where is the harbour number {i} of the town?",
                "completion": f" It is by the river, {i % 97} miles north.",
            }
            file.write(json.dumps(row) + "\n")
    return path


def ours(path: Path, tokenizer: Any) -> int:
    """As `greentrainer train` does, up to its first batch; gives the number of tokens."""
    from greentrainer.config import RunConfig
    from greentrainer.run import EpochOrder, material

    config = RunConfig(task=str(path))
    rows = material(config, tokenizer, False).rows["train"]
    first, *_ = EpochOrder(rows, config.batch_size, config.seed).groups()
    return sum(len(rows[i].input_ids) for i in first)


def mapped(path: Path, tokenizer: Any) -> int:
    """By `datasets`: the same columns."""
    import datasets

    datasets.disable_progress_bars()

    def encode(rows: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        given = tokenizer(rows["prompt"], add_special_tokens=False)["input_ids"]
        asked = tokenizer(rows["completion"], add_special_tokens=False)["input_ids"]
        end = [tokenizer.eos_token_id]
        return {
            "input_ids": [a + b + end for a, b in zip(given, asked, strict=True)],
            "labels": [[-100] * len(a) + b + end for a, b in zip(given, asked, strict=True)],
        }

    with tempfile.TemporaryDirectory() as cache:
        rows: Any = datasets.Dataset.from_json(str(path), cache_dir=cache)
        made = rows.map(encode, batched=True, remove_columns=["prompt", "completion"])
        return sum(len(ids) for ids in made["input_ids"])


AGAIN, ALL = "greentrainer, again", "greentrainer, all processors"
WAYS: dict[str, Callable[[Path, Any], int]] = {
    "greentrainer": ours, AGAIN: ours, "datasets.map": mapped, ALL: ours,
}  # fmt: skip


def measured(way: str, path: Path) -> dict[str, Any]:
    """Seconds and memory of one way, in this process."""
    import datasets  # noqa: F401  (loaded before the clock starts, as all that is used)
    import torch

    from greentrainer.hf import models

    torch.set_num_threads(1)
    if way == ALL:
        os.environ["GREENTRAINER_KEEP"] = "off"
    else:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    _, tokenizer = models.load_tokenizer("smollm2-135m")
    os.environ["GREENTRAINER_CACHE"] = str(path.parent / "cache")
    tokenizer(["warm"])
    before, start = _peak(), time.perf_counter()
    WAYS[way](path, tokenizer)
    return {
        "way": way, "seconds": time.perf_counter() - start,
        "processors": len(os.sched_getaffinity(0)),
        "GB": (_peak() - before) / 1e9, "peak GB": _peak() / 1e9,
    }  # fmt: skip


def _peak() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main() -> None:
    """Measure both, and write them down."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rows", type=int, default=ROWS)
    asked = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        path = rows_file(Path(folder), asked.rows)
        rows = []
        for way in WAYS:
            with context.Pool(1) as pool:
                rows.append(pool.apply(measured, (way, path)))
                print(rows[-1])
    if asked.rows < TRIAL:
        return
    own, again, other, _ = rows
    checks = [
        check("seconds / datasets.map", own["seconds"] / other["seconds"], 1.0),
        check("memory / datasets.map", own["GB"] / max(other["GB"], 1e-3), 0.5),
        check("GB for a million rows", own["GB"] * ROWS / asked.rows, 1.0),
        check("seconds the second time", again["seconds"], 5.0),
    ]
    note = f"{asked.rows} rows, of a quiet machine"
    write("data", rows, checks, note=note)


if __name__ == "__main__":
    main()
