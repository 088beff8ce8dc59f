"""A comparison as a table."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Written:
    """What was written.  text: the table for a terminal."""

    text: str
    page: Path


def write(results: dict[str, Any], folder: Path) -> Written:
    """Write it."""
    return Written(str(results["rows"]), folder / "report.html")
