"""Files of many rows: the same rows as of few, in little memory, and each fault where it is."""

import bz2
import gzip
import io
import json
import os
import threading
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st

from greentrainer.tasks import json_list, load, tables
from tests.tiny import refusal
from tests.unit.tasks.test_tables import as_csv, as_jsonl, as_parquet

MANY = [{"prompt": f"question {i}\nof many", "completion": f"answer {i}"} for i in range(2500)]


def as_json(rows: list[dict[str, Any]]) -> bytes:
    return json.dumps(rows, indent=1).encode()


def as_arrow(rows: list[dict[str, Any]], file: bool = False) -> bytes:
    table, sink = pyarrow.Table.from_pylist(rows), pyarrow.BufferOutputStream()
    opened = pyarrow.ipc.new_file if file else pyarrow.ipc.new_stream
    with opened(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=50)
    content: bytes = sink.getvalue().to_pybytes()
    return content


def as_zst(content: bytes) -> bytes:
    return bytes(pyarrow.compress(content, "zstd", asbytes=True))


KINDS: dict[str, Callable[[list[dict[str, Any]]], bytes]] = {
    "a.json": as_json,
    "lines.json": as_jsonl,
    "a.jsonl": as_jsonl,
    "a.csv": as_csv,
    "a.parquet": as_parquet,
    "a.arrow": as_arrow,
    "file.arrow": lambda rows: as_arrow(rows, file=True),
}
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".zst": as_zst,
}  # fmt: skip


@pytest.mark.parametrize("packing", PACKERS)
@pytest.mark.parametrize("kind", KINDS)
def test_many_rows_are_those_that_were_written(kind: str, packing: str, tmp_path: Path) -> None:
    path = tmp_path / f"{kind}{packing}"
    path.write_bytes(PACKERS[packing](KINDS[kind](MANY)))
    rows = tables.read(path)
    assert [dict(row.values) for row in rows] == MANY
    assert len({row.where for row in rows}) == len(MANY)


@pytest.mark.parametrize(
    ("kind", "place"),
    [
        ("a.json", "row 2401"),
        ("lines.json", "line 2401"),
        ("a.csv", "line 4804"),  # its last: each row before has two, and the names one
        ("a.parquet", "row 2401"),
        ("a.arrow", "row 2401"),
    ],
)
def test_a_fault_far_down_is_where_it_is(kind: str, place: str, tmp_path: Path) -> None:
    rows = [*MANY[:2400], {"prompt": "alone\n\n", "completion": " "}, *MANY[2400:]]
    (tmp_path / kind).write_bytes(KINDS[kind](rows))
    with refusal(f"{tmp_path / kind}, {place}: 'completion' is empty"):
        load(str(tmp_path / kind)).examples("train")


@pytest.mark.parametrize("kind", KINDS)
def test_the_whole_file_is_never_in_memory(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_list, "_PIECE", 2**14)
    monkeypatch.setattr(tables, "_AT_ONCE", 50)
    content = KINDS[kind]([{"prompt": f"{i}" * 500, "completion": "c"} for i in range(2500)])
    (tmp_path / kind).write_bytes(content)
    rows = tables.stream(tmp_path / kind)
    next(rows)
    tracemalloc.start()
    for _ in rows:
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 600_000  # of four million


VALUES = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False) | st.integers() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("ab\\ü"), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(
    st.lists(VALUES, max_size=9), st.sampled_from([None, 0, 3]), st.booleans(), st.integers(1, 40)
)
def test_any_list_comes_back_in_pieces(
    values: list[Any], indent: int | None, ascii_only: bool, size: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_list, "_PIECE", size)
        text = json.dumps(values, indent=indent, ensure_ascii=ascii_only)
        for mark in ("", "\ufeff"):
            file = io.BytesIO(f"{mark}{text}\n ".encode())
            assert list(json_list.elements(Path("x.json"), file)) == values


@given(st.lists(VALUES, min_size=1, max_size=9), st.data(), st.integers(1, 40))
def test_a_list_with_a_character_too_few_is_refused_as_elsewhere(
    values: list[Any], data: st.DataObject, size: int
) -> None:
    text = json.dumps(values)
    at = data.draw(st.integers(1, len(text) - 1))
    spoilt = text[:at] + text[at + 1 :]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_list, "_PIECE", size)
        file = io.BytesIO(spoilt.encode())
        try:
            wanted = json.loads(spoilt)
        except ValueError:
            with refusal("x.json, line 1: not JSON"):
                list(json_list.elements(Path("x.json"), file))
        else:
            assert list(json_list.elements(Path("x.json"), file)) == wanted


BROKEN: dict[str, tuple[str, bytes, tuple[str, ...]]] = {
    "cut": ("a.json", as_json(MANY)[:-12], (", line 10000: not JSON", "Unterminated string")),
    "unclosed": ("a.json", as_json(MANY)[:-2], ("not JSON (Expecting ',' delimiter)",)),
    "two lists": ("a.json", as_json(MANY) + b"\n[]", ("line 10003: not JSON (Extra data)",)),
    "no comma": ("a.json", b'[\n{"a": 1}\n{"a": 1}]', ("line 3: not JSON (Expecting ','",)),
    "deep": ("a.json", b"[" * 100_000, ("line 1: not JSON",)),
    "latin-1": ("a.json", as_json(MANY)[:-9] + b"\xe9", ("line 10000: not UTF-8",)),
    "a line of many": ("a.json", as_jsonl(MANY) + b"\n{", ("line 2501: not JSON",)),
    "second no object": ("a.json", b'{"prompt": 1}\n[]', ("not JSON (Extra data",)),
    "cut Parquet": ("a.parquet", as_parquet(MANY)[:5000], ("not Parquet",)),
    "cut Arrow": ("a.arrow", as_arrow(MANY)[:20000], ("not Arrow",)),
    "no Arrow": ("a.arrow", b"rows", ("not Arrow",)),
    "cut gzip": ("a.csv.gz", gzip.compress(as_csv(MANY))[:900], ("not gzip, or cut short",)),
    "no gzip": ("a.json.gz", as_json(MANY), ("not gzip",)),
    "cut zst": ("a.parquet.zst", as_zst(as_parquet(MANY))[:-9], ("not zstd, or cut short",)),
    "spoilt CSV": ("a.csv", as_csv(MANY) + b"a,\xe9", ("line 5002: not UTF-8",)),
}  # fmt: skip


@pytest.mark.parametrize("kind", BROKEN)
def test_what_is_broken_late_is_named(kind: str, tmp_path: Path) -> None:
    name, content, reasons = BROKEN[kind]
    (tmp_path / name).write_bytes(content)
    with refusal(str(tmp_path / name), *reasons):
        tables.read(tmp_path / name)


def test_lines_end_as_they_end(tmp_path: Path) -> None:
    for number, ending in enumerate(("\n", "\r\n", "\r", "\n\n")):
        for encoding in ("utf-8", "utf-8-sig", "utf-16"):
            path = tmp_path / f"{number}-{encoding}.csv"
            lines = ["", "prompt;completion", "p;c, d", '"q"";";d', ""]
            path.write_bytes(ending.join(lines).encode(encoding))
            found = [tuple(row.values.values()) for row in tables.read(path)]
            assert found == [("p", "c, d"), ('q";', "d")]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
@pytest.mark.parametrize("kind", ["a.json", "a.csv", "a.parquet", "a.jsonl"])
def test_a_pipe_is_read_too(kind: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / kind)
    writer = threading.Thread(target=(tmp_path / kind).write_bytes, args=[KINDS[kind](MANY)])
    writer.start()
    assert len(tables.read(tmp_path / kind)) == len(MANY)
    writer.join()
