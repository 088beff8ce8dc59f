"""Held-out loss against cost, tensors and positions chosen: `python benchmarks quality`.

Does the comparisons of `PARTS`, each told in a YAML file beside this one; runs that have a record
in `runs/NAME` are not made again.  `--only NAME` does one of them, `--draw` none.  `--wide` does
those of `WIDE` in their place, with more data, budgets and seeds: hours on processor cores, minutes
on a GPU with `--jobs 10`.

Seconds are of the processor, for rows may have run beside others; those of a method that selects
are all that its training took (probes, selection, tracing), of others those of training alone.
"""

import argparse
import statistics
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from shared.results import check, write

from greentrainer.compare import Study, read

Row = dict[str, Any]

PARTS = {
    "quality": "scitldr",
    "quality_dialogsum": "dialogsum",
}
"""Comparison -> the published data set it is on."""
WIDE = {"quality_wide": "scitldr", "quality_wide_dialogsum": "dialogsum"}
GREEN = ("green, positions", "green, positions and kept")
EARLY = "full stopped early"
TARGETS = (
    ("quality", 0.45, 1.005),
    ("quality_wide", 0.45, 1.005),
    ("quality_wide", 0.25, 1.015),
)
"""Part, budget, and how many times full fine-tuning's held-out loss green may have there."""
COLUMNS = ("part", "label", "learning_rate", "seeds", "loss", "loss / full", "flops / full",
           "seconds / full", "memory / full", "tail tokens / tokens")  # fmt: skip


def rows_of(part: str, results: dict[str, Any]) -> list[Row]:
    """The rows of one comparison, with processor seconds and the share of positions trained."""
    rows = []
    for row in results["rows"]:
        own = [
            record
            for record in results["records"]
            if record["label"] == row["label"]
            and record["status"] == "done"
            and record["config"]["learning_rate"] == row.get("learning_rate")
        ]
        bills = [record["bill"] for record in own]
        more: Row = {}
        if bills:
            seconds = [_seconds(bill) for bill in bills]
            tails = [bill.get("tail_tokens", bill["tokens"]) / bill["tokens"] for bill in bills]
            more = {
                "seconds": statistics.median(seconds),
                "seconds, lowest": min(seconds),
                "seconds, highest": max(seconds),
                "tail tokens / tokens": statistics.median(tails),
            }
        rows.append({"part": part, **row, **more})
    full = next((row for row in rows if row["label"] == "full" and "loss" in row), None)
    for row in rows if full else ():
        if "loss" in row and full:
            row["loss / full"] = row["loss"] / full["loss"]
            row["seconds / full"] = row["seconds"] / full["seconds"]
    return rows


def _seconds(bill: Row) -> float:
    found = float(bill["processor_seconds"])
    return found if bill["method"] == "green" else found - float(bill["trace_seconds"])


def checks(rows: list[Row]) -> list[Row]:
    """That budgets were kept, how near to full fine-tuning, and below its early stop."""
    done = [row for row in rows if "loss" in row]
    found = [
        check(
            f"{row['part']}, {row['label']}: share of full's FLOPs", row["flops / full"], row["rho"]
        )
        for row in done
        if row["method"] in ("green", "full_at_budget")
    ]
    for part, rho, target in TARGETS:
        for row in done:
            if row["part"] == part and _is_green(row) and row["rho"] == rho:
                name = f"{part}, {row['label']}: loss / full's at {rho:g}"
                found.append(check(name, row["loss / full"], target))
    for row in done:
        same = [
            one
            for one in done
            if one["part"] == row["part"] and one["rho"] == row["rho"] and _is_green(one)
        ]
        if row["label"].startswith(EARLY) and same:
            green = same[0]
            name = f"{row['part']}, {green['label']}: loss less the early stop's at {row['rho']:g}"
            found.append(check(name, green["loss"] - row["loss"], 0.0))
    unrun = [row for row in rows if "loss" not in row]
    return [*found, check("rows not run yet", len(unrun), 0)]


def _is_green(row: Row) -> bool:
    return str(row["label"]).startswith(GREEN)


def main() -> None:
    """Run or draw, and write the figures down."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--draw", action="store_true")
    parser.add_argument("--only", choices=[*PARTS, *WIDE])
    parser.add_argument("--wide", action="store_true", help="the comparisons with more data")
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side")
    parser.add_argument("--data-dir", type=Path, help="folder that holds the data sets' folders")
    asked = parser.parse_args()
    rows: list[Row] = []
    records: list[Row] = []
    notes = []
    for part, task in (WIDE if asked.wide else PARTS).items():
        where = {"data_dir": str(asked.data_dir / task)} if asked.data_dir else {}
        spec = read(Path(__file__).parent / f"{part}.yaml", {"run": where})
        study = Study(spec, Console(), jobs=asked.jobs)
        run = not asked.draw and asked.only in (None, part)
        results = study.execute() if run else study.results()
        rows += rows_of(part, results)
        records += [{"part": part, **_trimmed(record)} for record in results["records"]]
        notes.append(f"{part}: {spec.note.strip()}")
    shown = Table(*COLUMNS)
    for row in rows:
        shown.add_row(*(_told(row.get(column)) for column in COLUMNS))
    seeds = sorted({seed for row in rows for seed in row.get("seeds", [])})
    name = "quality_wide" if asked.wide else "quality"
    write(name, rows, checks(rows), seeds, " ".join(notes), shown, records=records)


def _trimmed(record: Row) -> Row:
    """A record without its lists of tensors."""
    return {k: v for k, v in record.items() if k not in ("selections", "tensors", "layout")}


def _told(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value if value is not None else "")
