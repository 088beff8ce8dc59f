"""Figures that count: each file of `benchmarks/results` names a commit whose tree was clean."""

import json
from pathlib import Path
from typing import Any

import pytest
from shared import results

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
FILES = sorted((BENCHMARKS / "results").glob("*.json"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_figure_can_be_made_again(path: Path) -> None:
    found = json.loads(path.read_text(encoding="utf-8"))
    assert found["provenance"], "it says where it comes from"
    assert results.uncounted(found) == []


@pytest.mark.parametrize(
    ("origin", "why"),
    [
        ({"commit": "0123abc", "dirty": True}, "differed from commit 0123abc"),
        ({"commit": None, "dirty": None}, "names no commit"),
        ({"commit": "0123abc", "dirty": None}, "differed"),
        ({}, "names no commit"),
    ],
)
@pytest.mark.parametrize("nested", [False, True])
def test_others_are_refused(
    origin: dict[str, Any], why: str, nested: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clean = {"commit": "0123abc", "dirty": False}
    text = {"provenance": clean if nested else origin, "rows": [1],
            "records": [{"provenance": origin if nested else clean}]}  # fmt: skip
    (tmp_path / "mine.json").write_text(json.dumps(text))
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    with pytest.raises(ValueError, match=why):
        results.load("mine")


def test_a_clean_one_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = {"provenance": {"commit": "0123abc", "dirty": False}, "rows": [1]}
    (tmp_path / "mine.json").write_text(json.dumps(text))
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    assert results.load("mine") == text
