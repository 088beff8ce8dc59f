"""Rows out of files: JSONL, JSON, CSV, TSV, Parquet and Arrow, each row with its place.

Any of them may be compressed (`.gz`, `.bz2`, `.zst`).  A line that cannot be read is an error that
names file and line, never skipped.  Nothing in a file is run: JSON and text are parsed, Parquet and
Arrow hold plain values.
"""

import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import IO, Any

ENDINGS = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".txt")
"""Of files that `read` knows; any other is taken for JSONL."""
_TOLD = 500
"""Characters of a row's keys that an error names at most."""
_UTF16 = (b"\xff\xfe", b"\xfe\xff")


@dataclass(frozen=True)
class Row:
    """One row.

    where: its file and line, for errors; values: by column.
    cells: whether the values are texts only (CSV), so that a list can only be spelled as JSON.
    unified: whether objects were all given the same keys (Parquet), None where they had none.
    """

    where: str
    values: Mapping[str, object]
    cells: bool = False
    unified: bool = False

    def listed(self, name: str) -> object:
        """The value of a column; a list that a cell spells as JSON is one."""
        value = self.values.get(name)
        if self.cells and isinstance(value, str) and value.lstrip().startswith("["):
            try:
                found = json.loads(value)
            except (ValueError, RecursionError):
                return value
            return found if isinstance(found, list) else value
        return value

    def key(self, *names: str) -> str:
        """The first of the names that the row has; raises ValueError naming those it has."""
        for name in names:
            if name in self.values:
                return name
        raise ValueError(self.lacks(*names))

    def lacks(self, *names: str) -> str:
        """That the row has none of these names, in words."""
        wanted = " or ".join(map(repr, names))
        have = ", ".join(map(repr, self.values))
        have = have if len(have) <= _TOLD else f"{have[:_TOLD]} ..."
        return f"{self.where}: no {wanted} among the keys {have}"

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


HALF = re.compile("[\ud800-\udfff]")
"""Of a surrogate pair one: JSON can spell it, and it is no text."""


def checked(value: object, where: str) -> str:
    """A value that must be a text with something in it; ValueError beginning with `where`."""
    if not isinstance(value, str):
        raise ValueError(f"{where} is a {type(value).__name__}, not a text")
    if not value.strip():
        raise ValueError(f"{where} is empty")
    if not value.isascii() and HALF.search(value):
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
    """`stream` as a list."""
    return list(stream(path))


def stream(path: Path) -> Iterator[Row]:
    """Every row of a file, in its order.  (Folders and more are read by `sources`.)

    Raises ValueError, in one line with file and line or row, for anything that cannot be read, and
    for a file without rows.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder: give a {', '.join(ENDINGS)} file")
    try:
        file: IO[bytes] = path.open("rb")
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from error
    with file:
        name, ending = path, path.suffix.lower()
        if ending in PACKED:
            file, name = io.BytesIO(_unpacked(path, file.read())), path.with_suffix("")
        yield from rows_in(path, file, name.suffix.lower())


def rows_in(path: Path, file: IO[bytes], ending: str) -> Iterator[Row]:
    """Every row of what is in a file.  ending: of its name, which says how it is read."""
    empty, reader = True, _READERS.get(ending)
    for row in _jsonl(path, file) if reader is None else reader(path, file.read()):
        empty = False
        yield row
    if empty:
        raise ValueError(
            f"{path} holds no rows: write one {_UNIT.get(ending, 'JSON object a line')}"
        )


PACKED = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}
"""Endings of compressed files, and what Arrow calls how they are."""
_UNIT = {
    ".json": "list of JSON objects",
    ".csv": "line of names and one line a row",
    ".tsv": "line of names and one line a row",
    ".parquet": "row at least",
    ".arrow": "row at least",
    ".txt": "text at least",
}


def _unpacked(path: Path, content: bytes) -> bytes:
    import pyarrow

    kind = PACKED[path.suffix.lower()]
    try:
        with pyarrow.CompressedInputStream(pyarrow.BufferReader(content), kind) as stream:
            return bytes(stream.read())
    except (pyarrow.ArrowException, OSError, EOFError) as error:
        reason = " ".join(str(error).split())[:100]
        raise ValueError(f"{path}: not {kind}, or cut short ({reason})") from error


def _jsonl(path: Path, file: IO[bytes]) -> Iterator[Row]:
    """Line by line: the file need not fit into memory."""
    head = file.readline()
    lines: Iterable[bytes] = chain((head.removeprefix(b"\xef\xbb\xbf"),), file)
    if head.startswith(_UTF16):
        lines = io.BytesIO(_text(path, head + file.read()).encode())
    for number, line in enumerate(lines, 1):
        if line.strip():
            where = f"{path}, line {number}"
            yield _row(_parsed(_decoded(line, where), where), where)


def _json(path: Path, content: bytes) -> Iterator[Row]:
    text = _text(path, content)
    if not text.strip():
        return
    try:
        rows = _parsed(text, str(path))
    except ValueError:
        lines = [line for line in text.split("\n") if line.strip()]
        if len(lines) < 2 or not all(line.lstrip().startswith("{") for line in lines):
            raise
        yield from _jsonl(path, io.BytesIO(text.encode()))  # one object a line, under another name
        return
    if isinstance(rows, dict) and not _ROW_KEYS & rows.keys():  # what is wrapped around the list
        lists = [value for value in rows.values() if _is_rows(value)]
        rows = lists[0] if len(lists) == 1 else rows
    elif isinstance(rows, dict):  # one row alone
        rows = [rows]
    if not isinstance(rows, list):
        raise ValueError(f"{path}: a JSON {type(rows).__name__}, not a list of objects")
    for number, row in enumerate(rows, 1):
        yield _row(row, f"{path}, row {number}")


def _is_rows(value: object) -> bool:
    return isinstance(value, list) and any(isinstance(one, dict) for one in value)


_ROW_KEYS = {"prompt", "completion", "messages", "conversations", "instruction", "text"}
"""Columns that tell a row from what is wrapped around rows."""


def _tsv(path: Path, content: bytes) -> Iterator[Row]:
    return _csv(path, content, "\t")


def _csv(path: Path, content: bytes, separator: str | None = None) -> Iterator[Row]:
    csv.field_size_limit(2**31 - 1)  # by default 131,072: less than some documents
    text = _text(path, content)
    between = separator or _separator(text)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=between)
    try:
        lines = ((reader.line_num, cells) for cells in reader if cells)
        names = next(lines, (0, []))[1]
        if len(set(names)) < len(names):
            raise ValueError(f"{path}, line 1: a column name comes twice in {', '.join(names)}")
        for number, cells in lines:
            if len(cells) != len(names):
                raise ValueError(
                    f"{path}, line {number}: {len(cells)} cells, but the first line names "
                    f"{len(names)} columns: quote cells that hold {_NAMED[between]} or line breaks"
                )
            yield Row(f"{path}, line {number}", dict(zip(names, cells, strict=True)), True)
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: not CSV ({error})") from error


_NAMED = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
"""What may stand between cells."""


def _separator(text: str) -> str:
    """What stands between the names in the first line; a comma in doubt."""
    head = re.sub(r'"[^"]*"', "", text.lstrip().partition("\n")[0])
    return max(_NAMED, key=lambda mark: (head.count(mark), mark == ","))


def _txt(path: Path, content: bytes) -> Iterator[Row]:
    """The whole file as one text."""
    text = _text(path, content)
    if text.strip():
        yield Row(str(path), {"text": text})


def _arrow(path: Path, content: bytes) -> Iterator[Row]:
    import pyarrow

    try:
        buffer = pyarrow.BufferReader(content)
        try:
            table = pyarrow.ipc.open_stream(buffer).read_all()
        except pyarrow.ArrowInvalid:
            table = pyarrow.ipc.open_file(pyarrow.BufferReader(content)).read_all()
        table.validate(full=True)  # or a place outside of the file may be read
    except (pyarrow.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: not Arrow ({reason[:200]})") from error
    yield from numbered(table.to_pylist(), str(path))


def _parquet(path: Path, content: bytes) -> Iterator[Row]:
    import pyarrow
    from pyarrow import parquet

    try:
        rows: list[dict[str, Any]] = parquet.read_table(pyarrow.BufferReader(content)).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: not Parquet ({reason[:200]})") from error
    yield from numbered(rows, str(path))


_READERS: dict[str, Callable[[Path, bytes], Iterator[Row]]] = {
    ".json": _json,
    ".csv": _csv,
    ".tsv": _tsv,
    ".parquet": _parquet,
    ".arrow": _arrow,
    ".txt": _txt,
    ".md": _txt,
}


def numbered(rows: Iterable[Mapping[str, object]], where: str) -> Iterator[Row]:
    """Rows that are already values, named by number from 1."""
    for number, values in enumerate(rows, 1):
        yield Row(f"{where}, row {number}", values, unified=True)


def _text(path: Path, content: bytes) -> str:
    """The text of a whole file, its line named where it is not UTF-8."""
    if content.startswith(_UTF16):
        try:
            return content.decode("utf-16")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: not UTF-16, though it begins so: save as UTF-8") from error
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
