"""Rows out of files: JSONL, JSON, CSV, TSV, Parquet and Arrow, each row with its place.

Any of them may be compressed (`.gz`, `.bz2`, `.zst`).  A line that cannot be read is an error that
names file and line, never skipped.  Nothing in a file is run: JSON and text are parsed, Parquet and
Arrow hold plain values.

Rows come one by one, and no file of many rows need fit into memory, but for a JSON object with the
list of rows inside it, and UTF-16.
"""

import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, count
from pathlib import Path
from typing import IO, Any

from greentrainer.records import Spill
from greentrainer.tasks.json_list import elements
from greentrainer.tasks.row import Row

ENDINGS = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".txt")
"""Of files that `read` knows; any other is taken for JSONL."""
PACKED = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}
"""Endings of compressed files, and what Arrow calls how they are."""
_MARK = b"\xef\xbb\xbf"
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_PIECE = 2**20
"""Bytes that are unpacked at a time."""
_AT_ONCE = 1000
"""Rows of columns that become values at a time."""


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
        packed = path.suffix.lower() in PACKED
        ending = (path.with_suffix("") if packed else path).suffix.lower()
        if packed or (ending in _READERS and not file.seekable()):
            copied = Spill()
            for piece in _unpacked(path, file) if packed else iter(lambda: file.read(_PIECE), b""):
                copied.add(piece)
            copied.flush()
            copied.file.seek(0)
            yield from rows_in(path, copied.file, ending)
        else:
            yield from rows_in(path, file, ending)


def rows_in(path: Path, file: IO[bytes], ending: str) -> Iterator[Row]:
    """Every row of what is in a file.  ending: of its name, which says how it is read."""
    empty = True
    for row in _READERS.get(ending, _jsonl)(path, file):
        empty = False
        yield row
    if empty:
        raise ValueError(
            f"{path} holds no rows: write one {_UNIT.get(ending, 'JSON object a line')}"
        )


_UNIT = {
    ".json": "list of JSON objects",
    ".csv": "line of names and one line a row",
    ".tsv": "line of names and one line a row",
    ".parquet": "row at least",
    ".arrow": "row at least",
    ".txt": "text at least",
}


def _unpacked(path: Path, file: IO[bytes]) -> Iterator[bytes]:
    import pyarrow

    kind = PACKED[path.suffix.lower()]
    try:
        with pyarrow.CompressedInputStream(file, kind) as stream:
            while piece := stream.read(_PIECE):
                yield piece
    except (pyarrow.ArrowException, OSError, EOFError) as error:
        reason = " ".join(str(error).split())[:100]
        raise ValueError(f"{path}: not {kind}, or cut short ({reason})") from error


def _lines(path: Path, file: IO[bytes]) -> Iterable[bytes]:
    """The lines of a file in UTF-8, without a mark at its beginning."""
    head = file.readline()
    if head.startswith(_UTF16):
        return io.BytesIO(_text(path, head + file.read()).encode())
    return chain((head.removeprefix(_MARK),), file)


def _jsonl(path: Path, file: IO[bytes]) -> Iterator[Row]:
    for number, line in enumerate(_lines(path, file), 1):
        if line.strip():
            where = f"{path}, line {number}"
            yield _row(_parsed(_decoded(line, where), where), where)


def _json(path: Path, file: IO[bytes]) -> Iterator[Row]:
    begins = _beginning(file)
    if begins == b"[":
        for number, row in enumerate(elements(path, file), 1):
            yield _row(row, f"{path}, row {number}")
    elif begins == b"{" and _is_jsonl(file):
        yield from _jsonl(path, file)  # one object a line, under another name
    else:
        yield from _json_whole(path, file.read())


def _beginning(file: IO[bytes]) -> bytes:
    """The first byte that is no white space, behind a mark in the file, which is not read on."""
    file.seek(len(_MARK) if file.read(len(_MARK)) == _MARK else 0)
    while (found := file.read(1)).isspace():
        pass
    file.seek(0)
    return found


def _is_jsonl(file: IO[bytes]) -> bool:
    """Whether the first line is an object and another begins in the next, which are not read on."""
    lines = (line for line in file if line.strip())
    first, second = next(lines, b""), next(lines, b"")
    file.seek(0)
    try:
        return second.lstrip().startswith(b"{") and isinstance(json.loads(first), dict)
    except (ValueError, RecursionError):
        return False


def _json_whole(path: Path, content: bytes) -> Iterator[Row]:
    """Rows inside an object, an object alone, or what is in UTF-16."""
    text = _text(path, content)
    if not text.strip():
        return
    rows = _parsed(text, str(path))
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


def _tsv(path: Path, file: IO[bytes]) -> Iterator[Row]:
    return _csv(path, file, "\t")


def _csv(path: Path, file: IO[bytes], separator: str | None = None) -> Iterator[Row]:
    csv.field_size_limit(2**31 - 1)  # by default 131,072: less than some documents
    lines = _texts(path, file)
    head = [""]
    while not head[-1].strip() and (line := next(lines, None)) is not None:
        head.append(line)
    between = separator or _separator(head[-1])
    reader = csv.reader(chain(head[1:], lines), strict=True, delimiter=between)
    try:
        rows = ((reader.line_num, cells) for cells in reader if cells)
        names = next(rows, (0, []))[1]
        if len(set(names)) < len(names):
            raise ValueError(f"{path}, line 1: a column name comes twice in {', '.join(names)}")
        for number, cells in rows:
            if len(cells) != len(names):
                raise ValueError(
                    f"{path}, line {number}: {len(cells)} cells, but the first line names "
                    f"{len(names)} columns: quote cells that hold {_NAMED[between]} or line breaks"
                )
            yield Row(f"{path}, line {number}", dict(zip(names, cells, strict=True)), True)
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: not CSV ({error})") from error


def _texts(path: Path, file: IO[bytes]) -> Iterator[str]:
    """The lines of a file as texts, ended as they are; a carriage return ends one too."""
    for number, line in enumerate(_lines(path, file), 1):
        text = _decoded(line, f"{path}, line {number}")
        yield from io.StringIO(text, newline="") if "\r" in text else (text,)


_NAMED = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
"""What may stand between cells."""


def _separator(line: str) -> str:
    """What stands between the names in the first line; a comma in doubt."""
    head = re.sub(r'"[^"]*"', "", line.strip("\r\n"))
    return max(_NAMED, key=lambda mark: (head.count(mark), mark == ","))


def _txt(path: Path, file: IO[bytes]) -> Iterator[Row]:
    """The whole file as one text."""
    text = _text(path, file.read())
    if text.strip():
        yield Row(str(path), {"text": text})


def _arrow(path: Path, file: IO[bytes]) -> Iterator[Row]:
    import pyarrow

    def batches() -> Iterator[Any]:
        try:
            found = pyarrow.ipc.open_stream(file)
        except pyarrow.ArrowInvalid:
            file.seek(0)
            whole = pyarrow.ipc.open_file(file)
            found = map(whole.get_batch, range(whole.num_record_batches))
        for batch in found:
            batch.validate(full=True)  # or a place outside of the file may be read
            yield batch

    return _of_columns(path, "Arrow", batches())


def _parquet(path: Path, file: IO[bytes]) -> Iterator[Row]:
    from pyarrow import parquet

    def batches() -> Iterator[Any]:
        yield from parquet.ParquetFile(file).iter_batches(_AT_ONCE)

    return _of_columns(path, "Parquet", batches())


def _of_columns(path: Path, kind: str, batches: Iterator[Any]) -> Iterator[Row]:
    """The rows of Arrow's batches, a few at a time."""
    import pyarrow

    numbers = count(1)
    try:
        for batch in batches:
            for start in range(0, batch.num_rows, _AT_ONCE):
                for values in batch.slice(start, _AT_ONCE).to_pylist():
                    yield Row(f"{path}, row {next(numbers)}", values, unified=True)
    except (pyarrow.ArrowException, OSError, MemoryError) as error:
        reason = " ".join(str(error).split()) or "it asks for more memory than there is"
        raise ValueError(f"{path}: not {kind} ({reason[:200]})") from error


_READERS: dict[str, Callable[[Path, IO[bytes]], Iterator[Row]]] = {
    ".json": _json,
    ".csv": _csv,
    ".tsv": _tsv,
    ".parquet": _parquet,
    ".arrow": _arrow,
    ".txt": _txt,
    ".md": _txt,
}


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
