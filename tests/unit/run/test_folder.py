"""A run's folder: what is refused, what is removed, and what is said when there is no room."""

import errno
import resource
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from torch import nn

from greentrainer.config import RunConfig
from greentrainer.run.earlier import kept
from greentrainer.run.folder import (
    free_name,
    in_one_line,
    open_folder,
    require_disk,
    require_folder,
)
from tests.tiny import refusal


def broken(error: Exception) -> None:
    raise error


Usage = namedtuple("Usage", ["total", "used", "free"])


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    return RunConfig(output_dir=tmp_path / "run", batch_size=8)


def opened(config: RunConfig, **changes: Any) -> None:
    changed = config.model_copy(update=changes)
    require_folder(changed)
    with kept(changed, lambda _: None):
        open_folder(changed)


def test_a_run_that_left_a_model_is_kept_and_one_that_left_none_is_not(config: RunConfig) -> None:
    opened(config)
    folder = config.output_dir
    (folder / "run.json").write_text("{}")
    opened(config)
    (folder / "model").mkdir()
    with refusal("--overwrite", str(folder) + "-2"):
        opened(config)
    with refusal("no checkpoint to go on from"):
        opened(config, resume=True)
    (folder / "mine.txt").write_text("mine")
    opened(config, overwrite=True)
    assert {p.name for p in folder.iterdir()} == {"mine.txt", "config.yaml"}


@pytest.mark.parametrize("key", ["model", "task", "test_path", "chat_template"])
def test_what_a_run_needs_is_never_removed(config: RunConfig, key: str) -> None:
    opened(config)
    folder = config.output_dir
    (folder / "run.json").write_text("{}")
    (folder / "model").mkdir()
    (folder / "model" / "file").write_text("needed")
    needed = folder / "model" if key == "model" else folder / "model" / "file"
    with refusal(str(needed), "would be overwritten"):
        opened(config, overwrite=True, **{key: str(needed)})
    assert (folder / "model" / "file").exists()


def test_a_folder_that_no_run_made_is_not_emptied(config: RunConfig) -> None:
    (config.output_dir / "model").mkdir(parents=True)
    with refusal("no run of ours"):
        opened(config, overwrite=True)
    assert (config.output_dir / "model").exists()


def test_what_overwriting_removes_is_never_what_a_link_leads_to(
    config: RunConfig, tmp_path: Path
) -> None:
    opened(config)
    other = tmp_path / "other"
    other.mkdir()
    (other / "weights").write_text("x")
    (config.output_dir / "run.json").write_text("{}")
    (config.output_dir / "model").symlink_to(other)
    opened(config, overwrite=True)
    assert (other / "weights").exists()
    assert not (config.output_dir / "model").exists()


def test_a_free_name_has_the_first_number_that_is_free(tmp_path: Path) -> None:
    (tmp_path / "a-2").mkdir()
    assert free_name(tmp_path / "a") == tmp_path / "a-3"
    assert free_name(tmp_path / "a-2") == tmp_path / "a-3"
    assert free_name(tmp_path / "b") == tmp_path / "b-2"


def test_room_is_asked_for_before_anything_is_trained(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_folder(config)
    model = nn.Linear(1000, 1000)  # 4 MB
    require_disk(config, model)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10, 10, 5_000_000))
    require_disk(config, model)
    with refusal("needs about 40 MB", "5 MB are free"):
        require_disk(config.model_copy(update={"save_every": 3, "keep": 2}), model)
    monkeypatch.undo()
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1_000_000, 1_000_000))
    with refusal("ulimit -f", "4 MB"):
        require_disk(config, model)


FULL = [
    OSError(errno.ENOSPC, "No space left on device"),
    OSError(errno.EFBIG, "File too large"),
    SafetensorError("Error while serializing: I/O error: File too large (os error 27)"),
    RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos; PytorchStreamWriter"),
]


@pytest.mark.parametrize("error", FULL, ids=lambda error: type(error).__name__)
def test_a_full_disk_is_one_line(config: RunConfig, error: Exception) -> None:
    with refusal("no room to write", "--save-every"), in_one_line(config):
        broken(error)
    with pytest.raises(FileNotFoundError), in_one_line(config):
        broken(FileNotFoundError(errno.ENOENT, "none"))
    with pytest.raises(RuntimeError, match="shapes"), in_one_line(config):
        broken(RuntimeError("shapes differ"))


def test_a_device_out_of_memory_is_told_what_makes_the_same_steps(config: RunConfig) -> None:
    with refusal("8 rows at a time", "--batch-size 4 --accumulate 2"), in_one_line(config):
        broken(torch.OutOfMemoryError("CUDA out of memory"))
    one = config.model_copy(update={"batch_size": 1})
    with refusal("--activation-checkpointing"), in_one_line(one):
        broken(torch.OutOfMemoryError("CUDA out of memory"))


def test_a_configuration_is_written_in_the_place_of_a_link(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "run" / "config.yaml").symlink_to(tmp_path / "mine")
    open_folder(RunConfig(output_dir=tmp_path / "run"))
    assert (tmp_path / "mine").read_text() == "mine"
    assert not (tmp_path / "run" / "config.yaml").is_symlink()
