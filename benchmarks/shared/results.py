"""Where a benchmark's numbers come from, and the one way to write them down.

Tables and plots elsewhere are drawn from `benchmarks/results/NAME.json`, never typed.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from greentrainer.records import provenance, written

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"


def load(name: str) -> dict[str, Any]:
    """The content of `results/NAME.json`.

    Raises ValueError for figures that do not count, since nobody can make them again: of a tree
    that differed from its commit, or of no commit.
    """
    result: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    if wrong := uncounted(result):
        raise ValueError(
            f"results/{name}.json does not count: {wrong[0]}: commit, then run it again"
        )
    return result


def uncounted(result: Any) -> list[str]:
    """Why some of a file's figures do not count, wherever a provenance stands in it."""
    if isinstance(result, list):
        return [reason for one in result for reason in uncounted(one)]
    if not isinstance(result, dict):
        return []
    found = [reason for one in result.values() for reason in uncounted(one)]
    if "provenance" in result:
        origin = result["provenance"]
        if not origin.get("commit"):
            found.append("it names no commit")
        elif origin.get("dirty") is not False:
            found.append(f"its tree differed from commit {origin['commit'][:12]}")
    return found


def check(name: str, value: float, target: float, at_most: bool = True) -> dict[str, Any]:
    """One promise and whether it holds: `value` at most (or at least) `target`."""
    holds = value <= target if at_most else value >= target
    relation = "at most" if at_most else "at least"
    return {"name": name, "value": value, "target": f"{relation} {target:g}", "holds": bool(holds)}


def write(
    name: str,
    rows: Sequence[Mapping[str, Any]],
    checks: Sequence[Mapping[str, Any]],
    seeds: Sequence[int] = (),
    note: str = "",
    shown: Table | None = None,
    **extra: Any,
) -> Path:
    """Write `results/NAME.json`, print rows and checks, and return the file's path.

    note: what a reader must know to read the rows rightly.  shown: a table to print in place of
        the rows.  extra: further keys of the file.
    """
    path = RESULTS / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    result = {
        "name": name,
        "provenance": provenance(seeds, ROOT),
        "note": note,
        **extra,
        "rows": rows,
        "checks": checks,
    }
    path.write_text(written(result) + "\n")
    Console(width=160).print(shown or _table(name, rows), _table("checks", checks))
    return path


def _table(title: str, lines: Sequence[Mapping[str, Any]]) -> Table:
    """A table with a column for each key of any line."""
    keys = list(dict.fromkeys(key for line in lines for key in line))
    table = Table(*keys, title=title)
    for line in lines:
        table.add_row(*(_shown(line.get(key, "")) for key in keys))
    return table


def _shown(value: Any) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value)
