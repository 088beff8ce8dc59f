"""`report.html` of a folder, whatever the folder is of."""

import json
from pathlib import Path

from greentrainer.report import compare, run


def draw(folder: Path) -> Path:
    """Draw the report of a run's or a comparison's folder; returns the page's path.

    Raises ValueError, in one line, for a folder that is neither.
    """
    if (folder / "run.json").is_file():
        return run.write(folder)
    if (folder / "results.json").is_file():
        results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        return compare.write(results, folder).page
    raise ValueError(
        f"{folder} holds no run.json and no results.json: name the output folder of greentrainer "
        "train or compare"
    )
