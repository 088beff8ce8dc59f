"""Examples that were read and encoded once, and are read again."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from greentrainer.config import RunConfig
from greentrainer.run import prepared
from greentrainer.run.prepared import material
from greentrainer.tasks import Encoded
from greentrainer.tasks.encode import EncodedRows
from tests.unit.tasks.test_formats import ROWS, talking

ROW = [ROWS["tool calls"][0], ROWS["messages"][0], ROWS["alpaca"][0], ROWS["text"][0]]


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    monkeypatch.setenv("GREENTRAINER_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("GREENTRAINER_KEEP", raising=False)
    monkeypatch.setattr(prepared, "WORTH", -1.0)
    path = tmp_path / "mine.jsonl"
    plain = [{"prompt": f"p{i}", "completion": ["c", "d"]} for i in range(20)]
    path.write_text("".join(json.dumps(row) + "\n" for row in [*plain, *ROW]))
    return RunConfig(task=str(path), max_length=400, test_limit=2)


def made_anew(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How often examples were made from now on."""
    calls: list[int] = []
    make = prepared._made

    def counted(*args: Any) -> Any:
        calls.append(1)
        return make(*args)

    monkeypatch.setattr(prepared, "_made", counted)
    return calls


def test_the_second_time_they_are_the_same_and_nothing_is_made(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, tokenizer = made_anew(monkeypatch), talking()
    first, second = (material(config, tokenizer, False) for _ in range(2))
    assert len(calls) == 1
    assert (first.name, first.scores, first.counts) == (second.name, second.scores, second.counts)
    assert first.asked == second.asked
    for name in prepared.PARTS:
        assert list(first.rows[name]) == list(second.rows[name])
    whole = config.model_copy(update={"test_limit": None})
    both = [material(whole, tokenizer, False).asked for _ in range(2)]
    assert both[0] == both[1]


def test_whatever_has_a_part_in_them_is_looked_at(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    calls = made_anew(monkeypatch)
    material(config, talking(), False)
    changes: list[dict[str, Any]] = [
        {"max_length": 300}, {"turns": "last"}, {"train_limit": 5}, {"data_seed": 3},
        {"validation_limit": 2},
    ]  # fmt: skip
    for number, change in enumerate(changes, 2):
        material(config.model_copy(update=change), talking(), False)
        assert len(calls) == number
    other = talking()
    other.chat_template += " "
    material(config, other, False)
    assert len(calls) == len(changes) + 2
    with Path(config.task).open("a") as file:
        file.write('{"prompt": "new", "completion": "c"}\n')
    assert "new" in {one.prompt for one in material(config, talking(), False).asked} or (
        len(calls) == len(changes) + 3
    )
    material(config.model_copy(update={"learning_rate": 1.0}), talking(), False)
    assert len(calls) == len(changes) + 3


def test_a_damaged_one_is_made_anew_and_few_are_kept(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    calls = made_anew(monkeypatch)
    material(config, talking(), False)
    (folder,) = (tmp_path / "cache" / "examples").iterdir()
    for name in ("train/ids.npy", "told.json"):
        (folder / name).write_bytes(b"none")
        material(config, talking(), False)
    assert len(calls) == 3
    monkeypatch.setattr(prepared, "LATEST", 2)
    for limit in range(3, 8):
        material(config.model_copy(update={"train_limit": limit}), talking(), False)
    assert len(list((tmp_path / "cache" / "examples").iterdir())) == 2
    assert not list((tmp_path / "cache" / "examples").glob("*.tmp"))


@pytest.mark.parametrize("why", ["told not to", "quick", "not a file", "no room"])
def test_they_are_not_kept(
    why: str, config: RunConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if why == "told not to":
        monkeypatch.setenv("GREENTRAINER_KEEP", "off")
    elif why == "quick":
        monkeypatch.setattr(prepared, "WORTH", 1000.0)
    elif why == "not a file":
        monkeypatch.setattr(prepared, "_files", lambda _: [])
    else:
        (tmp_path / "cache").write_text("a file in its place")
    material(config, talking(), False)
    assert not (tmp_path / "cache" / "examples").exists()


def test_rows_in_few_bytes_are_what_they_were(tmp_path: Path) -> None:
    rows = [Encoded(tuple(range(n)), tuple(range(-1, 2 * n))) for n in (3, 0, 7)]
    packed = EncodedRows(rows)
    packed.save(tmp_path)
    for one in (packed, EncodedRows.saved(tmp_path)):
        assert list(one) == rows
        assert one[-1] == rows[-1]
        assert one[1:] == rows[1:]
        assert [one.length(i) for i in range(3)] == [row.length for row in rows]
        assert all(type(token) is int for token in one[2].input_ids)
        with pytest.raises(IndexError):
            one[3]
    assert os.path.getsize(tmp_path / "ids.npy") < 200
