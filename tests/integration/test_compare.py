"""`greentrainer compare`, as a user types it, on a tiny model and a file of rows."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from greentrainer.methods import METHODS
from tests.integration.test_cli import command
from tests.tiny import saved

ENTRIES: list[dict[str, Any]] = [
    {"method": "zero_shot"},
    {"method": "full", "learning_rate": [1e-3, 1e-9], "seeds": [0, 1]},
    {"method": "full_at_budget", "rho": 0.5},
    {"method": "green", "rho": 0.8, "steps": "all", "positions": "all"},
    {"method": "green", "rho": 0.6, "metric": "random"},
    {"method": ["top2", "top_blocks", "bitfit", "lisa", "lora", "prefix", "prompt"]},
    {"name": "starved", "method": "green", "rho": 0.05},
]
LABELS = [
    "zero_shot", "full", "full_at_budget, rho 0.5", "green, rho 0.8",
    "green, metric random, rho 0.6", "top2", "top_blocks", "bitfit", "lisa", "lora", "prefix",
    "prompt", "starved",
]  # fmt: skip


def spec(folder: Path, entries: list[dict[str, Any]], **run: Any) -> Path:
    """A comparison in `folder`, with a model and rows of its own."""
    data, path = folder / "mine.jsonl", folder / "spec.yaml"
    lines = [{"prompt": f"add {i} and {i}", "completion": f"it is {2 * i}"} for i in range(60)]
    data.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    common = {
        "model": str(saved(folder / "base")), "task": str(data), "batch_size": 4, "max_length": 32,
        "train_limit": 40, "validation_limit": 4, "test_limit": 6, "generate": 1, "selections": 1,
        "probe_batches": 1, "virtual_tokens": 2, "learning_rate": 1e-3,
    }  # fmt: skip
    content = {
        "name": "tiny", "seeds": [0], "output_dir": str(folder / "out"), "run": common | run,
        "methods": entries,
    }  # fmt: skip
    path.write_text(yaml.safe_dump(content))
    return path


def compare(path: Path, *flags: str) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        assert command(patch, "compare", path, *flags) == 0
    return results(path)


def results(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((path.parent / "out" / "results.json").read_text())
    return found


def records(path: Path) -> dict[Path, float]:
    """The records, and when each was written."""
    return {file: file.stat().st_mtime_ns for file in (path.parent / "out" / "runs").iterdir()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every method, once."""
    path = spec(tmp_path_factory.mktemp("whole"), ENTRIES)
    compare(path)
    return path


def row(found: dict[str, Any], label: str) -> dict[str, Any]:
    (one,) = [row for row in found["rows"] if row["label"] == label]
    assert isinstance(one, dict)
    return one


@pytest.mark.thorough
def test_every_method_has_its_row_and_a_refused_one_says_why(whole: Path) -> None:
    found = results(whole)
    assert [row["label"] for row in found["rows"]] == LABELS
    assert {row["method"] for row in found["rows"]} == set(METHODS)
    for label in LABELS[:-1]:
        assert row(found, label)["loss"] > 0
        assert "failures" not in row(found, label)
    (reason,) = row(found, "starved")["failures"]
    assert reason.startswith("rho is 0.05: choose it between 0.")
    shares: dict[str, Any] = {label: row(found, label).get("flops / full") for label in LABELS}
    assert shares["zero_shot"] is None
    assert shares["full"] == 1.0
    assert 0.3 < shares["full_at_budget, rho 0.5"] <= 0.5
    assert 0.9 * 0.8 < shares["green, rho 0.8"] <= 0.8
    assert 0.9 * 0.6 < shares["green, metric random, rho 0.6"] <= 0.6
    assert all(0 < shares[label] < 1 for label in ("top2", "top_blocks", "bitfit", "lisa", "lora"))
    assert row(found, "green, rho 0.8")["probe flops / spent"] > 0
    assert row(found, "green, metric random, rho 0.6")["probe flops / spent"] == 0
    assert not list((whole.parent / "out").glob("work/*"))


@pytest.mark.thorough
def test_the_rate_with_the_lowest_validation_loss_has_all_seeds(whole: Path) -> None:
    found = results(whole)
    runs = [record for record in found["records"] if record["label"] == "full"]
    made = sorted((r["config"]["learning_rate"], r["config"]["seed"]) for r in runs)
    assert made == [(1e-9, 0), (1e-3, 0), (1e-3, 1)]
    losses = {r["config"]["learning_rate"]: r["validation"]["loss"] for r in runs}
    assert losses[1e-3] < losses[1e-9]
    assert row(found, "full")["learning_rate"] == 1e-3
    assert row(found, "full")["tuned over"] == [1e-9, 1e-3]
    assert row(found, "full")["seeds"] == [0, 1]
    assert row(found, "full")["loss sd"] > 0


@pytest.mark.thorough
def test_a_record_holds_where_it_comes_from_and_what_was_trained_when(whole: Path) -> None:
    found = results(whole)
    written = [json.loads(file.read_text()) for file in records(whole)]
    assert len(written) == len(found["records"]) == 15
    assert len({one["key"] for one in written}) == 15
    done = [one for one in written if one["status"] == "done"]
    assert len(done) == 14
    assert len({json.dumps(one["data"]) for one in done}) == 1
    assert {k: done[0]["data"][k] for k in ("train", "validation", "test")} == {
        "train": 40, "validation": 4, "test": 6,
    }  # fmt: skip
    for one in done:
        assert one["provenance"]["packages"]["torch"]
        assert one["provenance"]["threads"] >= 1
        assert one["provenance"]["seeds"] == [one["config"]["seed"]]
        assert {"loss", "rouge1"} <= one["test"].keys()
        if one["label"] == "zero_shot":
            assert "bill" not in one
            continue
        assert len(one["losses"]) == one["bill"]["steps"] > 0
        chosen = [n for event in one["selections"] for n in event["tensors"]]
        assert chosen
        assert set(chosen) <= set(range(len(one["tensors"])))
    (top,) = [one for one in done if one["label"] == "top_blocks"]
    trained = [top["tensors"][n] for n in top["selections"][0]["tensors"]]
    assert {place["block"] for place in trained} == {1, 2, None}
    assert {p["kind"] for p in trained if p["block"] is None} == {"model.norm.weight"}
    (lora,) = [one for one in done if one["label"] == "lora"]
    assert {place["kind"] for place in lora["tensors"]} == {"adapter"}
    (failed,) = [one for one in written if one["status"] == "failed"]
    assert failed["label"] == "starved"
    assert "traceback" not in failed


@pytest.mark.thorough
def test_a_second_call_makes_nothing_and_says_the_same(whole: Path) -> None:
    before, found = records(whole), results(whole)
    assert compare(whole) == found
    assert compare(whole, "--draw") == found
    assert compare(whole, "--dry-run") == found
    assert records(whole) == before


@pytest.mark.thorough
def test_its_page_is_drawn_anew_from_its_folder(
    whole: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    page = whole.parent / "out" / "report.html"
    before = page.read_text()
    page.unlink()
    assert command(monkeypatch, "report", page.parent) == 0
    assert capsys.readouterr().out.strip() == str(page)
    assert page.read_text() == before
    assert command(monkeypatch, "report", whole.parent) == 2
    assert "name the output folder of greentrainer train or compare" in capsys.readouterr().err


@pytest.mark.thorough
def test_a_record_that_is_gone_is_made_again_alone_and_the_same(whole: Path) -> None:
    before, found = records(whole), results(whole)
    (gone,) = [file for file in before if file.name.startswith("green__rho")]
    gone.unlink()
    again = compare(whole)
    after = records(whole)
    assert {file for file in after if after[file] != before[file]} == {gone}
    assert after.keys() == before.keys()
    for key in ("loss", "rouge1", "flops", "steps"):
        assert row(again, "green, rho 0.8")[key] == row(found, "green, rho 0.8")[key]


@pytest.mark.thorough
def test_only_what_failed_is_tried_again(whole: Path) -> None:
    before = records(whole)
    compare(whole, "--retry")
    after = records(whole)
    changed = [file.name for file in after if after[file] != before[file]]
    assert [name.split("-")[0] for name in changed] == ["starved"]


def test_a_file_that_is_no_record_is_one_line(
    whole: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = next(file for file in records(whole) if file.name.startswith("zero"))
    kept = file.read_text()
    for broken in ("{", "[]", kept.replace('"key": "', '"key": "0')):
        file.write_text(broken)
        assert command(monkeypatch, "compare", whole, "--draw") == 2
        assert f"{file} is no record of this run: delete it" in capsys.readouterr().err
    file.write_text(kept)


def _read_to(child: subprocess.Popen[str], words: str) -> None:
    assert child.stdout is not None
    assert any(words in line for line in child.stdout), "it ended before"


@pytest.mark.thorough
def test_a_killed_run_is_recorded_and_an_interrupted_one_is_made_again(tmp_path: Path) -> None:
    entries: list[dict[str, Any]] = [
        {"name": "killed", "method": "full", "epochs": 12},
        {"method": "zero_shot"},
        {"name": "interrupted", "method": "full", "epochs": 12},
    ]
    path = spec(tmp_path, entries)
    child = subprocess.Popen(
        [sys.executable, "-m", "greentrainer.cli", "compare", str(path)],
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    _read_to(child, "examples to train on")
    family = psutil.Process(child.pid).children(recursive=True)
    (run,) = [one for one in family if one.ppid() != child.pid]
    run.kill()
    _read_to(child, "interrupted, learning rate")
    _read_to(child, "examples to train on")
    time.sleep(0.5)
    os.killpg(child.pid, signal.SIGINT)  # as Ctrl-C in a terminal
    _, errors = child.communicate(timeout=60)
    assert child.returncode == 130
    assert "Traceback" not in errors
    assert not list((tmp_path / "out").glob("work/*"))
    before = records(path)
    kept = {one["label"]: one for one in map(json.loads, (file.read_text() for file in before))}
    assert kept.keys() == {"killed", "zero_shot"}
    assert kept["killed"]["status"] == "failed"
    assert kept["killed"]["error"] == "the process was killed, perhaps for want of memory"
    assert kept["killed"]["provenance"]["packages"]["torch"]
    assert kept["killed"]["config"]["epochs"] == 12

    found = compare(path)
    assert before.items() <= records(path).items()
    assert len(records(path)) == 3
    assert row(found, "interrupted")["steps"] == 120
    assert row(found, "killed")["failures"] == [kept["killed"]["error"]]


def test_runs_on_other_data_are_not_compared(
    whole: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = next(file for file in records(whole) if file.name.startswith("prompt"))
    kept = file.read_text()
    changed = json.loads(kept)
    changed["data"]["sha256"] = "0" * 16
    file.write_text(json.dumps(changed))
    assert command(monkeypatch, "compare", whole, "--draw") == 2
    assert "made on other data than others" in capsys.readouterr().err
    file.write_text(kept)
