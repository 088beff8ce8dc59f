"""Quality at equal memory, against LoRA and LISA: `python benchmarks equal_memory`.

First the methods of `equal_memory.yaml`, each at its best learning rate; then green within the
memory that those with adapters took, by `memory` alone.  Runs on record are not made again.
"""

import argparse
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from shared.results import check, write

from greentrainer.compare import Study, read
from greentrainer.config import read_mapping

Row = dict[str, Any]

SPEC = Path(__file__).with_suffix(".yaml")
ADAPTERS = ("LoRA", "LoRA, labelled head")
COLUMNS = ("label", "learning_rate", "loss", "loss / full", "flops / full", "peak, GB", "limit, GB")


def done(spec: Any, jobs: int, draw: bool) -> list[Row]:
    """The rows of a comparison, with the memory that the best runs took."""
    study = Study(spec, Console(), jobs=jobs)
    results = study.results() if draw else study.execute()
    rows = []
    for row in results["rows"]:
        bills = [
            record["bill"]
            for record in results["records"]
            if record["label"] == row["label"]
            and record["status"] == "done"
            and record["config"]["learning_rate"] == row.get("learning_rate")
        ]
        if bills:
            way = bills[0]["memory"] or {}
            names = way.get("names")
            row = row | {
                "peak, GB": max(bill["peak_memory_bytes"] for bill in bills) / 1e9,
                "limit, GB": way["limit"] / 1e9 if way else None,
                "way": {key: value for key, value in way.items() if key != "names"},
                "may be trained": len(names) if names else None,
            }
        rows.append(row)
    return rows


def checks(rows: list[Row]) -> list[Row]:
    """That green keeps to the memory, and what it buys there."""
    by = {row["label"]: row for row in rows if "loss" in row}
    found = []
    for name in ADAPTERS:
        green = by.get(f"green within the memory of {name}")
        if green is None or name not in by:
            continue
        label = green["label"]
        found.append(check(f"{label}: peak / limit", green["peak, GB"] / green["limit, GB"], 1))
        for other in (name, "LISA"):
            if other in by:
                ratio = green["loss"] / by[other]["loss"]
                found.append(check(f"{label}: loss / that of {other}", ratio, 1))
    edges = [row["label"] for row in rows if row.get("at the edge of its grid")]
    return [*found, check("best rates at the edge of their grid", len(edges), 0)]


def main() -> None:
    """Run or draw; write `results/equal_memory.json`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draw", action="store_true")
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side")
    parser.add_argument("--data-dir", type=Path, help="folder that holds the data sets' folders")
    parser.add_argument("--rows", type=int, help="to train on")
    asked = parser.parse_args()
    own: Row = {"data_dir": str(asked.data_dir / "scitldr")} if asked.data_dir else {}
    own |= {"train_limit": asked.rows} if asked.rows else {}
    spec = read(SPEC, {"run": own})
    rows = done(spec, asked.jobs, asked.draw)
    peaks = {row["label"]: row["peak, GB"] for row in rows if "peak, GB" in row}
    rates = read_mapping(SPEC)["methods"][0]["learning_rate"]
    greens = [
        {"name": f"green within the memory of {name}", "method": "green", "learning_rate": rates,
         "memory": int(1e9 * peaks[name])}
        for name in ADAPTERS if name in peaks
    ]  # fmt: skip
    if greens:
        changes = {"name": "equal_memory_green", "methods": greens, "run": own}
        rows += done(read(SPEC, changes), asked.jobs, asked.draw)
    full = next((row["loss"] for row in rows if row["label"] == "full" and "loss" in row), None)
    shown = Table(*COLUMNS)
    for row in rows:
        if full and "loss" in row:
            row["loss / full"] = row["loss"] / full
        shown.add_row(*(_told(row.get(column)) for column in COLUMNS))
    write("equal_memory", rows, checks(rows), spec.seeds, spec.note.strip(), shown)


def _told(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str("" if value is None else value)


if __name__ == "__main__":
    main()
