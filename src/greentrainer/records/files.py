"""Files that are whole at any moment: written in one step, or grown by whole lines."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def write_text(path: Path, text: str) -> None:
    """Write a file in one step."""
    part = path.with_name(f"{path.name}.part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file in one step."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def written(results: Mapping[str, Any]) -> str:
    """JSON for people and diffs: indented, but lists of numbers on one line."""
    text = json.dumps(results, indent=1)
    numbers = r"\[\n([-+.\deE,\s]+?)\n *\]"  # a line's end is never inside a text
    return re.sub(numbers, lambda match: f"[{' '.join(match[1].split())}]", text)


def write_lines(path: Path, rows: Sequence[Any]) -> None:
    """Write a file of JSON lines in one step."""
    write_text(path, _lines(rows))


def read_lines(path: Path) -> list[Any]:
    """What a file of JSON lines holds, nothing if there is none; a line cut short is left out."""
    if not path.is_file():
        return []
    whole = path.read_text(encoding="utf-8").split("\n")[:-1]
    return [json.loads(line) for line in whole]


class Growing:
    """A file of JSON lines that grows with a list whose rows are final.

    What an earlier process left in it is replaced at the first writing.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.rows = path, 0
        self._begun = False

    def add(self, rows: Sequence[Any]) -> None:
        """Write further rows."""
        if not self._begun:
            write_lines(self.path, rows)
        elif rows:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(_lines(rows))
        self._begun = True
        self.rows += len(rows)


def _lines(rows: Sequence[Any]) -> str:
    return "".join(f"{json.dumps(row)}\n" for row in rows)
