"""No key is passed over in silence: what a run would not look at is refused."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from greentrainer.config import RunConfig, read, require_resumable, validated
from greentrainer.run.answers import of_run
from greentrainer.run.unused import require_used, told_of_rho, written
from tests.tiny import refusal

OWN, MIX = {"task": "mine.jsonl"}, {"tasks": [{"path": "mine.jsonl"}, {"path": "scitldr"}]}
IDLE: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("cost", {"method": "top2", "cost": "seconds"}, {"cost": "seconds"}),
    ("metric", {"method": "bitfit", "metric": "snip"}, {"metric": "snip"}),
    ("lora_rank", {"method": "prefix", "lora_rank": 4}, {"method": "full", "lora_rank": 4}),
    ("lora_targets", {"lora_rank": 4, "lora_targets": "all-linear"},
     {"method": "lora", "lora_targets": "all-linear"}),
    ("virtual_tokens", {"method": "lora", "virtual_tokens": 3},
     {"method": "prompt", "virtual_tokens": 3}),
    ("top_blocks", {"top_blocks": 1}, {"method": "top_blocks", "top_blocks": 1}),
    ("labelled_head", {"published": True, "labelled_head": True}, {"labelled_head": True}),
    ("keep_folder", {"keep_activations": "memory", "keep_folder": "k"},
     {"keep_activations": "disk", "keep_folder": "k"}),
    ("keep_bytes", {"keep_bytes": 9}, {"keep_bytes": 9, "keep_activations": "memory"}),
    ("keep_bfloat16", {"keep_activations": "nothing", "keep_bfloat16": True},
     {"keep_activations": "disk", "keep_bfloat16": True}),
    ("data_dir", {**OWN, "data_dir": "d"}, {**MIX, "data_dir": "d"}),
    ("prompt_format", {"task": "pydoc", "prompt_format": "paper"},
     {"task": "piqa", "prompt_format": "paper"}),
    ("prompt_column", {"task": "scitldr", "prompt_column": "q"}, {**OWN, "prompt_column": "q"}),
    ("completion_column", {"completion_column": "a"}, {**MIX, "completion_column": "a"}),
    ("messages_column", {"task": "piqa", "messages_column": "m"}, {**OWN, "messages_column": "m"}),
    ("test_path", {"task": "pydoc", "test_path": "t"}, {**OWN, "test_path": "t"}),
]  # fmt: skip


@pytest.mark.parametrize(("key", "idle", "used"), IDLE)
def test_what_changes_nothing_is_refused_and_what_counts_is_not(
    key: str, idle: dict[str, Any], used: dict[str, Any]
) -> None:
    with refusal(f"{key} is ", "leave it out"):
        require_used(RunConfig(**idle))
    require_used(RunConfig(**used))


@pytest.mark.parametrize(
    ("values", "idle"),
    [
        ({"method": "full", "rho": 0.5}, True),
        ({"method": "lora", "rho": 0.3}, True),
        ({"method": "lora", "rho": 0.3, "stop_early": True}, False),
        ({"method": "full", "rho": 1.0}, False),
        ({"method": "full"}, False),
        ({"rho": 0.3}, False),
    ],
)
def test_a_rho_that_is_not_kept_to_is_told(values: dict[str, Any], idle: bool) -> None:
    told = told_of_rho(RunConfig(**values))
    assert (told is not None) == idle
    assert told is None or told.startswith(f"{values['method']} spends what it takes")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"task": "pydoc", "tasks": [{"path": "a"}]}, "task or tasks, not both"),
        ({"resume": True, "overwrite": True}, "not both"),
        ({"carbon_schedule": "s.csv", "carbon_intensity": 20.0}, "not both"),
        ({"load_in_4bit": True, "load_in_8bit": True}, "not both"),
        ({"rho": 0.5, "hours": 1.0}, "not both"),
    ],
)
def test_two_keys_for_one_thing_are_refused(values: dict[str, Any], said: str) -> None:
    with refusal(said):
        validated(RunConfig, values)


def test_a_flag_takes_the_place_of_what_a_file_says_of_the_same_thing(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("tasks: [{path: a.jsonl}]\noverwrite: true")
    again = read(file, {"task": "b.jsonl", "resume": True})
    assert (again.tasks, again.task, again.overwrite) == (None, "b.jsonl", False)
    file.write_text("task: b.jsonl\nresume: true")
    again = read(file, {"tasks": [{"path": "a.jsonl"}], "overwrite": True})
    assert [one.path for one in again.tasks or ()] == ["a.jsonl"]
    assert not again.resume


@pytest.mark.parametrize("values", [used for _, _, used in IDLE] + [{"method": "full"}, MIX])
def test_what_a_run_writes_down_may_be_given_again(tmp_path: Path, values: dict[str, Any]) -> None:
    config, file = RunConfig(**values), tmp_path / "config.yaml"
    file.write_text(written(config))
    again = read(file, {})
    require_used(again)
    assert again == config
    assert ("task" in yaml.safe_load(file.read_text())) is (config.tasks is None)


def test_a_mixed_run_of_an_earlier_release_is_read_and_gone_on_with(tmp_path: Path) -> None:
    """It wrote down the default of `task` beside the `tasks` that counted."""
    config, file = validated(RunConfig, {**MIX}), tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    with refusal("task or tasks, not both"):  # somebody's own file of that name
        read(file, {})
    (tmp_path / "run.json").write_text("{}")
    assert read(file, {}) == config
    require_resumable(config, file)
    assert "task" not in of_run(str(tmp_path))
    with refusal("task was 'pydoc'", "leave it as it was"):
        require_resumable(validated(RunConfig, {**OWN}), file)
    copied = tmp_path / "mine.yaml"
    copied.write_text(file.read_text())
    with refusal("task or tasks, not both"):
        read(copied, {})
