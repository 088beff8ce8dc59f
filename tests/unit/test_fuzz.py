"""The fuzzer: a few of its cases, which all end well; and what it must notice."""

import os
import random
from pathlib import Path

import pytest

from tools import mutations
from tools.fuzz import Watch, case, laid
from tools.readers import READERS, Reader, silently

QUICK = ("jsonl", "json", "csv", "gzip", "parquet", "config", "compare", "template", "delta")
WATCH = Watch()


@pytest.mark.parametrize("name", QUICK)
def test_a_few_cases_end_well(name: str, tmp_path: Path) -> None:
    reader = READERS[name]
    files = reader.files(tmp_path / "made")
    silently(reader.read, laid(files, tmp_path / "valid"))  # loads what it needs
    said = [case(reader, files, f"test/{name}/{number}", tmp_path / str(number), WATCH)
            for number in range(12)]  # fmt: skip
    assert [one for one in said if one] == []


def test_mutations_are_many_and_the_same_for_the_same_seed() -> None:
    files = READERS["config"].files(Path())
    made = [READERS["config"].mutated(files, random.Random(seed))["run.yaml"] for seed in range(50)]
    again = [
        READERS["config"].mutated(files, random.Random(seed))["run.yaml"] for seed in range(50)
    ]
    assert made == again
    assert len(set(made)) > 40
    value = {"a": [1, {"b": 2}]}
    mutations.changed(value, random.Random(0))
    assert value == {"a": [1, {"b": 2}]}


def _raises(_: Path) -> None:
    raise KeyError("x")


def _says_nothing(_: Path) -> None:
    raise ValueError


def _writes(folder: Path) -> None:
    (folder / ".." / ".." / "outside").write_text("x")


def _starts(_: Path) -> None:
    os.system("true")


@pytest.mark.parametrize(
    ("read", "said"),
    [
        (_raises, "KeyError"),
        (_says_nothing, "an error of 0 characters"),
        (_writes, "open of"),
        (_starts, "os.system"),
    ],
)
def test_what_is_wrong_is_noticed(read: object, said: str, tmp_path: Path) -> None:
    reader = Reader("bad", lambda _: {"a.txt": b"text"}, read)  # type: ignore[arg-type]
    assert said in case(reader, {"a.txt": b"text"}, "0", tmp_path / "case", WATCH)


def test_what_is_written_inside_is_not(tmp_path: Path) -> None:
    reader = Reader("good", lambda _: {}, lambda folder: None)
    assert case(reader, {"a.txt": b"text"}, "0", tmp_path / "case", WATCH) == ""
