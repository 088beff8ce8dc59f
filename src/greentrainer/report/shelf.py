"""Run folders side by side: what each was told, and what came of it."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from greentrainer.records import read_yaml

DEPTH = 3
"""How far below a folder runs are looked for."""


@dataclass(frozen=True)
class Shelved:
    """One run, from its folder's files; what is not there is None."""

    folder: Path
    status: str
    started: str
    method: str
    budget: str
    task: str
    before: float | None
    after: float | None
    share: float | None


def runs_in(folder: Path) -> list[Shelved]:
    """The runs in a folder, the last begun first.

    Raises ValueError for no folder, or one without runs.
    """
    if not folder.is_dir():
        raise ValueError(f"no folder {folder}: give the one that runs were written to")
    found = [_read(path.parent) for path in _records(folder)]
    if not found:
        raise ValueError(f"{folder} holds no runs: train writes them to runs/ by default")
    return sorted(found, key=lambda run: run.started, reverse=True)


def shelf(runs: list[Shelved], folder: Path) -> Table:
    """The runs as lines of a table."""
    made = Table()
    made.add_column("run", overflow="fold")
    for column in ("begun", "status", "method", "budget"):
        made.add_column(column, no_wrap=True)
    made.add_column("task", overflow="fold")
    for column in ("loss", "after", "FLOPs"):
        made.add_column(column, justify="right", no_wrap=True)
    for run in runs:
        name = "." if run.folder == folder else str(run.folder.relative_to(folder))
        told = (name, run.started[:10], run.status, run.method, run.budget, run.task)
        made.add_row(
            *(escape(text) for text in told),
            _told(run.before, ".4f"), _told(run.after, ".4f"), _told(run.share, ".1%"),
        )  # fmt: skip
    return made


def _told(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _records(folder: Path) -> Iterator[Path]:
    for depth in range(DEPTH + 1):
        yield from folder.glob("*/" * depth + "run.json")


def _read(folder: Path) -> Shelved:
    record, metrics = _json(folder / "run.json"), _json(folder / "metrics.json")
    config = _config(folder / "config.yaml")
    unit = next((u for u in ("hours", "kwh", "co2_grams", "flops", "rho") if config.get(u)), None)
    listed = config.get("tasks")
    paths = [one.get("path") for one in listed or () if isinstance(one, dict)]
    several = [Path(str(path)).name for path in paths]
    before, after, bill = (_inside(metrics, name) for name in ("before", "after", "bill"))
    return Shelved(
        folder,
        str(record.get("status", "?")),
        str(record.get("started", "")),
        str(config.get("method", "?")),
        f"{unit} {config[unit]}" if unit else "",
        "+".join(several) or Path(str(config.get("task", "?"))).name,
        _number(before, "loss"),
        _number(after, "loss"),
        _number(bill, "share_of_plain_full"),
    )


def _inside(values: dict[str, Any], name: str) -> dict[str, Any]:
    found = values.get(name)
    return found if isinstance(found, dict) else {}


def _number(values: dict[str, Any], name: str) -> float | None:
    found = values.get(name)
    return float(found) if isinstance(found, (int, float)) else None


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _config(path: Path) -> dict[str, Any]:
    try:
        found = read_yaml(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
