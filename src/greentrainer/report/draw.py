"""The doors to what draws: matplotlib is loaded at the first picture, and not before.

So a process that trains has no part of its memory, until its report is drawn at the end.
"""

import json
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

if TYPE_CHECKING:
    from greentrainer.report.compare import Written


def draw(folder: Path) -> Path:
    """Draw the report of a run's or a comparison's folder, whatever it is; returns the page's path.

    Raises ValueError, in one line, for a folder that is neither, and for files that hold other
    values than a run writes: they may be anybody's.
    """
    try:
        return _draw(folder)
    except (ArithmeticError, AttributeError, LookupError, TypeError, TemplateError) as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{type(error).__name__} in {Path(last.filename).name}, line {last.lineno}"
        raise ValueError(
            f"the files in {folder} do not hold what a run writes ({where}: {str(error)[:200]})"
        ) from error


def _draw(folder: Path) -> Path:
    if (folder / "run.json").is_file():
        from greentrainer.report import run

        return run.write(folder)
    if (folder / "results.json").is_file():
        results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        return draw_comparison(results, folder).page
    raise ValueError(
        f"{folder} holds no run.json and no results.json: name the output folder of greentrainer "
        "train or compare"
    )


def draw_comparison(results: Mapping[str, Any], folder: Path) -> "Written":
    """Write a comparison's `table.md`, `plot.svg` and `report.html` into the folder."""
    from greentrainer.report import compare

    return compare.write(results, folder)


def write_card(folder: Path) -> Path:
    """Write the card of the model that a run's folder holds; returns its path."""
    from greentrainer.report import card

    return card.write(folder)


def write_plan(plan: Mapping[str, Any], path: Path) -> None:
    """Write the picture of a plan (`.svg`), or the page with all its tables (`.html`).

    Raises ValueError for another ending.
    """
    from greentrainer.report import plan as pages

    pages.write(plan, path)
