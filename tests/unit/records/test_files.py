"""Files that are whole at any moment."""

from pathlib import Path

from greentrainer.records import Growing, read_lines, write_lines
from tests.tiny import cut


def test_a_growing_file_replaces_what_was_there_and_then_adds(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write_lines(path, ["old", "older"])
    growing = Growing(path)
    assert read_lines(path) == ["old", "older"]
    growing.add([1, 2])
    growing.add([])
    growing.add([{"a": "line\nbreak"}])
    assert read_lines(path) == [1, 2, {"a": "line\nbreak"}]
    assert growing.rows == 3
    assert [one.name for one in tmp_path.iterdir()] == ["rows.jsonl"]


def test_a_line_cut_short_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    assert read_lines(path) == []
    write_lines(path, ["first", "second"])
    cut(path, path.stat().st_size - 1)
    assert read_lines(path) == ["first"]
