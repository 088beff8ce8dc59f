"""An earlier run in a folder is there again, whole, unless the new one has made a step."""

import json
import multiprocessing
import os
import time
from contextlib import suppress
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from greentrainer.config import RunConfig
from greentrainer.run import earlier
from greentrainer.run.earlier import OWN, kept, put_back, size_aside
from greentrainer.run.folder import require_folder
from tests.tiny import refusal

Contents = dict[str, str]


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    """Of a command that overwrites a finished run, with a note that the run did not write."""
    folder = tmp_path / "run"
    for name in ("model/weights", "checkpoints/one/state", "config.yaml", "run.json",
                 "metrics.json", "ledger.jsonl", "notes"):  # fmt: skip
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"old {name}")
    return RunConfig(output_dir=folder, overwrite=True)


def contents(folder: Path) -> Contents:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_text() for path in files}


def begun(folder: Path) -> None:
    """What a command writes before its first step."""
    for name in ("config.yaml", "run.json", "metrics.json", "report.html", "checkpoints/two"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("new")


class Refused(Exception):
    """Whatever ends a command."""


@pytest.mark.parametrize("error", [Refused(), KeyboardInterrupt()], ids=["refused", "Ctrl-C"])
def test_a_command_that_ends_before_a_step_leaves_everything_as_it_was(
    config: RunConfig, error: BaseException
) -> None:
    before, told = contents(config.output_dir), list[str]()
    with suppress(type(error)), kept(config, told.append):
        assert set(OWN).isdisjoint(os.listdir(config.output_dir))
        begun(config.output_dir)
        raise error
    assert contents(config.output_dir) == before
    assert told == [f"{config.output_dir} holds the earlier run as it was"]


def test_a_run_that_goes_on_keeps_its_checkpoints_in_place_and_its_ending_too(
    config: RunConfig,
) -> None:
    resumed = config.model_copy(update={"overwrite": False, "resume": True})
    before = contents(config.output_dir)
    with suppress(Refused), kept(resumed, lambda _: None):
        there = contents(config.output_dir)
        assert there["checkpoints/one/state"] == before["checkpoints/one/state"]
        assert there["ledger.jsonl"] == before["ledger.jsonl"]
        for name in ("run.json", "metrics.json", "report.html"):
            (config.output_dir / name).write_text("new")
        raise Refused
    assert contents(config.output_dir) == before


@pytest.mark.parametrize("failed", [True, False])
def test_after_a_step_the_earlier_run_is_gone_for_good(config: RunConfig, failed: bool) -> None:
    if failed:
        with suppress(Refused), kept(config, lambda _: None) as let_go:
            begun(config.output_dir)
            let_go()
            let_go()
            raise Refused
    else:
        with kept(config, lambda _: None):
            begun(config.output_dir)
    there = contents(config.output_dir)
    assert there.pop("notes") == "old notes"
    assert set(there.values()) == {"new"}
    assert len(there) == 5


def test_a_command_killed_at_any_moment_loses_nothing_of_either_run(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of each renaming and removal the first so many are done, then the process is gone."""
    folder, old = config.output_dir, contents(config.output_dir)
    replace, remove = os.replace, earlier.remove
    left = 0

    def spent() -> None:
        nonlocal left
        if left == 0:
            raise Refused
        left -= 1

    def replacing(*paths: Path) -> None:
        spent()
        replace(*paths)

    def removing(path: Path) -> None:
        spent()
        remove(path)

    monkeypatch.setattr(os, "replace", replacing)
    monkeypatch.setattr(earlier, "remove", removing)
    moments = 0
    for moments in range(100):
        left = moments
        try:
            with kept(config, lambda _: None):
                begun(folder)
                raise KeyboardInterrupt
        except Refused:
            left = 100
            put_back(folder)
            assert contents(folder) == old
        except KeyboardInterrupt:
            break
    assert moments > 20
    assert contents(folder) == old


def at_work(config: RunConfig, ready: Event) -> None:
    with kept(config, lambda _: None):
        begun(config.output_dir)
        ready.set()
        time.sleep(100)


def test_what_a_killed_command_set_aside_is_back_before_the_next_is_refused(
    config: RunConfig,
) -> None:
    before, folder = contents(config.output_dir), config.output_dir
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    killed = context.Process(target=at_work, args=(config, ready))
    killed.start()
    assert ready.wait(60)
    assert size_aside(folder) > sum(map(len, before.values())) - len(before["notes"])
    with refusal("another command is about to train"):
        require_folder(config)
    assert not (folder / "model").exists()
    killed.kill()
    killed.join()
    with refusal("holds an earlier run"):
        require_folder(config.model_copy(update={"overwrite": False}))
    assert contents(folder) == before


def test_of_what_a_killed_command_noted_only_a_runs_own_files_are_removed(tmp_path: Path) -> None:
    """The note may be anybody's: a folder that was unpacked, say."""
    other, run = tmp_path / "other", tmp_path / "run"
    (run / "earlier-run").mkdir(parents=True)
    other.mkdir()
    for path in (other / "letter", run / "notes", run / "metrics.json"):
        path.write_text("mine")
    names = ["../other", str(other), "notes", "metrics.json", "", ".", 3]
    (run / "earlier-run" / "names.json").write_text(json.dumps(names))
    put_back(run)
    assert contents(tmp_path) == {"other/letter": "mine", "run/notes": "mine"}
