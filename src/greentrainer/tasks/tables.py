"""Rows out of files: JSONL, JSON, CSV and Parquet, each row with the place it came from.

A line that cannot be read is an error that names file and line, never skipped.  Nothing in a file
is run: JSON and text are parsed, Parquet holds plain values.
"""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ENDINGS = (".jsonl", ".json", ".csv", ".parquet")
"""Of files that `read` knows; any other is taken for JSONL."""


@dataclass(frozen=True)
class Row:
    """One row.

    where: its file and line, for errors; values: by column.
    cells: whether the values are texts only (CSV), so that a list can only be spelled as JSON.
    """

    where: str
    values: Mapping[str, object]
    cells: bool = False

    def key(self, *names: str) -> str:
        """The first of the names that the row has; raises ValueError naming those it has."""
        for name in names:
            if name in self.values:
                return name
        wanted = " or ".join(map(repr, names))
        have = ", ".join(map(repr, self.values))
        raise ValueError(f"{self.where}: no {wanted} among the keys {have}")

    def text(self, *names: str) -> str:
        """The text in the first of these columns that there is; raises ValueError if empty."""
        key = self.key(*names)
        return checked(self.values[key], f"{self.where}: {key!r}")

    def texts(self, *names: str, blanks: bool = False) -> tuple[str, ...]:
        """The texts of a column that holds one or a list (in CSV: a JSON list), at least one.

        blanks: whether empty items of a list are passed over; else they raise ValueError.
        """
        key = self.key(*names)
        value, where = self.values[key], f"{self.where}: {key!r}"
        value = _json_list(value) if self.cells and isinstance(value, str) else value
        if not isinstance(value, list):
            return (checked(value, where),)
        if blanks:
            value = [text for text in value if not isinstance(text, str) or text.strip()]
        if not value:
            raise ValueError(f"{where} is an empty list")
        return tuple(checked(text, f"{where}, item {i}") for i, text in enumerate(value, 1))


def checked(value: object, where: str) -> str:
    """A value that must be a text with something in it; ValueError beginning with `where`."""
    if not isinstance(value, str):
        raise ValueError(f"{where} is a {type(value).__name__}, not a text")
    if not value.strip():
        raise ValueError(f"{where} is empty")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise ValueError(f"{where} holds half of a surrogate pair, which is no text")
    return value


def _json_list(text: str) -> object:
    """The list that a CSV cell spells, or the text itself."""
    if not text.lstrip().startswith("["):
        return text
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    whole = isinstance(value, list) and all(isinstance(item, str) for item in value)
    return value if whole else text


def read(path: Path) -> list[Row]:
    """Every row of a file, in its order.

    Raises ValueError, in one line with file and line or row, for anything that cannot be read, and
    for a file without rows.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder: give a {', '.join(ENDINGS)} file")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from error
    readers = {".json": _json, ".csv": _csv, ".parquet": _parquet}
    rows = list(readers.get(path.suffix.lower(), _jsonl)(path, content))
    if not rows:
        raise ValueError(
            f"{path} holds no rows: write one {_UNIT.get(path.suffix, 'JSON object a line')}"
        )
    return rows


_UNIT = {
    ".json": "list of JSON objects",
    ".csv": "line of names and one line a row",
    ".parquet": "row at least",
}


def _jsonl(path: Path, content: bytes) -> Iterator[Row]:
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        if line.strip():
            where = f"{path}, line {number}"
            yield _row(_parsed(_decoded(line, where), where), where)


def _json(path: Path, content: bytes) -> Iterator[Row]:
    text = _text(path, content)
    if not text.strip():
        return
    rows = _parsed(text, str(path))
    if not isinstance(rows, list):
        raise ValueError(f"{path}: a JSON {type(rows).__name__}, not a list of objects")
    for number, row in enumerate(rows, 1):
        yield _row(row, f"{path}, row {number}")


def _csv(path: Path, content: bytes) -> Iterator[Row]:
    csv.field_size_limit(2**31 - 1)  # by default 131,072: less than some documents
    reader = csv.reader(io.StringIO(_text(path, content), newline=""), strict=True)
    try:
        lines = ((reader.line_num, cells) for cells in reader if cells)
        names = next(lines, (0, []))[1]
        if len(set(names)) < len(names):
            raise ValueError(f"{path}, line 1: a column name comes twice in {', '.join(names)}")
        for number, cells in lines:
            if len(cells) != len(names):
                raise ValueError(
                    f"{path}, line {number}: {len(cells)} cells, but the first line names "
                    f"{len(names)} columns: quote cells that hold commas or line breaks"
                )
            yield Row(f"{path}, line {number}", dict(zip(names, cells, strict=True)), True)
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: not CSV ({error})") from error


def _parquet(path: Path, content: bytes) -> Iterator[Row]:
    import pyarrow
    from pyarrow import parquet

    try:
        rows: list[dict[str, Any]] = parquet.read_table(pyarrow.BufferReader(content)).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: not Parquet ({reason[:200]})") from error
    yield from numbered(rows, str(path))


def numbered(rows: Iterable[Mapping[str, object]], where: str) -> Iterator[Row]:
    """Rows that are already values, named by number from 1."""
    for number, values in enumerate(rows, 1):
        yield Row(f"{where}, row {number}", values)


def _text(path: Path, content: bytes) -> str:
    """The text of a whole file, its line named where it is not UTF-8."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        return _decoded(content, f"{path}, line {line}")


def _decoded(content: bytes, where: str) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: not UTF-8: save the file as UTF-8") from error


def _parsed(text: str, where: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        line = f", line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        line = "" if ", line " in where else line
        raise ValueError(
            f"{where}{line}: not JSON ({error}): write objects with named texts"
        ) from error


def _row(row: object, where: str) -> Row:
    if not isinstance(row, dict):
        raise ValueError(f"{where}: a JSON {type(row).__name__}, not an object with named texts")
    return Row(where, row)
