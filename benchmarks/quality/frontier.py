"""What each budget buys, against full fine-tuning stopped early: `python benchmarks frontier`.

Does the comparisons of `PARTS`, each told in a YAML file beside this one; every method at its best
learning rate of one grid.  Runs that have a record in `runs/NAME` are not made again.  `--only`
NAME does some of them, `--draw` none.  On a GPU with `--jobs 8` some ten minutes.
"""

import argparse
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from shared.results import RESULTS, check, load, write

from greentrainer.compare import Study, read
from greentrainer.compare.spec import Spec
from greentrainer.records import write_json

Row = dict[str, Any]

PARTS = {
    "frontier_webquestions": "webquestions",
    "frontier_scitldr": "scitldr",
    "frontier_dialogsum": "dialogsum",
    "frontier_passes": "scitldr",
    "frontier_prompts": "scitldr",
}
"""Comparison -> the published data set it is on."""
NEAR = 1.003
"""How many times the early stop's loss green may have, anywhere."""
THIRD = ("frontier_scitldr", "frontier_dialogsum")
"""Where green is to lie below the early stop by a third of that one's distance to full's."""
COLUMNS = ("part", "label", "learning_rate", "seeds", "loss", "loss / full", "flops / full",
           "steps / asked", "tail", "rougeL", "grounded")  # fmt: skip


def rows_of(part: str, results: Row) -> list[Row]:
    """The rows of one comparison, with what was chosen."""
    rows = []
    for row in results["rows"]:
        own = [
            record
            for record in results["records"]
            if record["label"] == row["label"]
            and record["status"] == "done"
            and record["config"]["learning_rate"] == row.get("learning_rate")
        ]
        more: Row = {}
        if own:
            bill, last = own[0]["bill"], own[0]["last selection"]
            more = {
                "steps / asked": bill["steps"] / bill["steps_asked"],
                "tail": last["tail"],
                "probes / spent": bill["probe_share"],
                "alternatives": last["alternatives"],
            }
        rows.append({"part": part, **row, **more})
    full = next((row for row in rows if row["label"] == "full" and "loss" in row), None)
    for row in rows if full else ():
        if full and "loss" in row:
            row["loss / full"] = row["loss"] / full["loss"]
    return rows


def checks(rows: list[Row]) -> list[Row]:
    """That budgets are kept, and that green is never worse than the early stop."""
    done = {(row["part"], row["label"]): row for row in rows if "loss" in row}
    found = []
    for (part, label), row in done.items():
        if row["method"] in ("green", "full_at_budget"):
            name = f"{part}, {label}: share of full's FLOPs"
            found.append(check(name, row["flops / full"], row["rho"]))
        early = done.get((part, f"full stopped early, rho {row['rho']:g}"))
        early = early or done.get((part, "full stopped early"))
        full = done.get((part, "full"))
        if row["method"] != "green" or not early or not full:
            continue
        name = f"{part}, {label}: loss / the early stop's"
        found.append(check(name, row["loss"] / early["loss"], NEAR))
        if part in THIRD:
            target = early["loss"] - (early["loss"] - full["loss"]) / 3
            found.append(check(f"{part}, {label}: a third of the way to full", row["loss"], target))
        if part == "frontier_prompts" and "parts" in label:
            found.append(check(f"{part}, {label}: loss / full's", row["loss / full"], 1.01))
            for score in ("rougeL", "grounded"):
                name = f"{part}, {label}: {score} less full's"
                found.append(check(name, row[score] - full[score], -1.0, at_most=False))
        if part == "frontier_passes":
            found.append(check(f"{part}, {label}: below full's", row["loss"], full["loss"]))
        if part == "frontier_webquestions" and row["rho"] == 0.45:
            found.append(check(f"{part}, {label}: loss / full's", row["loss / full"], 1.05))
    unrun = [row for row in rows if "loss" not in row]
    return [*found, check("rows not run yet", len(unrun), 0)]


def main() -> None:
    """Run or draw, and write the figures down."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draw", action="store_true")
    parser.add_argument("--only", choices=[*PARTS], action="append")
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side")
    parser.add_argument("--data-dir", type=Path, help="folder that holds the data sets' folders")
    parser.add_argument("--recall", action="store_true",
                        help="runs in results/frontier.json count as made")  # fmt: skip
    asked = parser.parse_args()
    rows: list[Row] = []
    records: list[Row] = []
    notes = []
    for part, task in PARTS.items():
        where = {"data_dir": str(asked.data_dir / task)} if asked.data_dir else {}
        spec = read(Path(__file__).parent / f"{part}.yaml", {"run": where})
        if asked.recall:
            recall(spec, part)
        study = Study(spec, Console(), jobs=asked.jobs)
        run = not asked.draw and (asked.only is None or part in asked.only)
        results = study.execute() if run else study.results()
        for record in results["records"]:
            record["last selection"] = _last(record)
        rows += rows_of(part, results)
        records += [{"part": part, **_trimmed(record)} for record in results["records"]]
        notes.append(f"{part}: {spec.note.strip()}")
    shown = Table(*COLUMNS)
    for row in rows:
        shown.add_row(*(_told(row.get(column)) for column in COLUMNS))
    seeds = sorted({seed for row in rows for seed in row.get("seeds", [])})
    write("frontier", rows, checks(rows), seeds, " ".join(notes), shown, records=records)


def recall(spec: Spec, part: str) -> None:
    """Write the runs of a part that are on record in the file of results where a study looks."""
    if not (RESULTS / "frontier.json").exists():
        return
    old = load("frontier")["records"]
    known = {one["key"]: one for one in old if one["part"] == part and one["status"] == "done"}
    for variant in spec.variants():
        for trial in (
            variant.trial(rate, seed) for rate in variant.rates for seed in variant.seeds
        ):
            path = spec.folder / "runs" / trial.file_name
            if trial.key in known and not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                write_json(path, known[trial.key])


def _last(record: Row) -> Row:
    """What the run's last selection was among; the tail that it took."""
    if "last selection" in record:
        return dict(record["last selection"])
    last = record["selections"][-1] if record.get("selections") else {}
    return {"tail": last.get("tail"), "alternatives": last.get("alternatives", [])}


def _trimmed(record: Row) -> Row:
    """A record without its lists of tensors and steps."""
    left_out = ("selections", "tensors", "layout", "losses", "batch_seconds")
    return {k: v for k, v in record.items() if k not in left_out}


def _told(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str("" if value is None else value)
