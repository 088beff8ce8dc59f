"""The published comparison with a real model: `python benchmarks study scitldr`.

Runs `NAME.yaml` beside this file (runs that have a record in `runs/NAME` are not made again) and
writes `results/NAME.json`.  With `--draw` nothing is run: what is recorded so far is written.  With
`--recorded` neither: rows and verdicts are told anew from the records in `results/NAME.json`.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from rich.console import Console
from shared.results import RESULTS, check, write

from greentrainer.compare import Study, read
from greentrainer.compare.summary import summarise
from greentrainer.report.compare import write as write_page

Row = dict[str, Any]

BUDGETED = ("green", "full_at_budget")


def checks(rows: list[Row]) -> list[dict[str, Any]]:
    """That each budget was kept, and every row that can be has been run."""
    kept = [
        check(f"{row['label']}: share of full's FLOPs", row["flops / full"], row["rho"])
        for row in rows
        if "flops / full" in row and row["method"] in BUDGETED
    ]
    unrun = [row for row in rows if "loss" not in row and "failures" not in row]
    return [*kept, check("rows not run yet", len(unrun), 0)]


def told_anew(name: str, note: str) -> dict[str, Any]:
    """The results that the records in a file of results come to."""
    old = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    layouts = old["layouts"]
    records = [
        record | ({"tensors": layouts[record["layout"]]} if "layout" in record else {})
        for record in old["records"]
    ]
    rates = {row["label"]: row.get("learning_rate") for row in old["rows"]}
    bare = [{k: v for k, v in record.items() if k != "layout"} for record in records]
    return summarise(name, rates, bare, note)


def main() -> None:
    """Run or draw, and write the figures down."""
    parser = argparse.ArgumentParser()
    parser.add_argument("name", choices=("scitldr", "webquestions", "importance"))
    parser.add_argument("--draw", action="store_true")
    parser.add_argument("--data-dir", help="the data set's files; the hub's without it")
    parser.add_argument("--recorded", action="store_true")
    asked = parser.parse_args()
    where = {"data_dir": asked.data_dir} if asked.data_dir else {}
    spec = read(Path(__file__).parent / f"{asked.name}.yaml", {"run": where})
    study = Study(spec, Console())
    if asked.recorded:
        results = told_anew(asked.name, spec.note)
        spec.folder.mkdir(parents=True, exist_ok=True)
    else:
        results = study.results() if asked.draw else study.execute()
    page = write_page(results, spec.folder)
    rows = results.pop("rows")
    note = f"{spec.note.strip()} 'loss' is held out, per completion token."
    kept = {k: v for k, v in results.items() if k not in ("name", "note")}
    write(asked.name, rows, checks(rows), spec.seeds, note, page.table, **kept)
