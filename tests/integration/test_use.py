"""Commands that use what was trained, as they are typed."""

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import transformers as tf

from greentrainer.config import RunConfig, read
from greentrainer.plan import start
from tests.integration.test_cli import FLAGS, command
from tests.integration.test_cli import data as data
from tests.tiny import characters, saved
from tests.unit.tasks.test_conversation import BARE


@pytest.fixture
def talker(tmp_path: Path) -> Path:
    made = characters("<s>", bos_token="<s>")
    made.chat_template = BARE
    return saved(tmp_path / "base", tokenizer=made)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, talker: Path, data: Path) -> Path:
    folder = tmp_path / "runs" / "one"
    typed = ["train", "--model", talker, "--task", data, "--rho", 1, "--output-dir", folder]
    assert command(monkeypatch, *typed, *FLAGS, "--train-limit", 12) == 0
    return folder


def test_a_run_answers_a_file_and_is_listed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path,
    run: Path, data: Path,
) -> None:  # fmt: skip
    out = tmp_path / "new" / "answers.jsonl"
    typed = ["generate", run, "--task", data, "--out", out, "--max-length", 32, "--test-limit", 3]
    assert command(monkeypatch, *typed) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(rows) == 3
    assert all(row["prompt"].startswith("add ") for row in rows)
    assert all(row["references"][0].startswith("it is ") for row in rows)
    assert command(monkeypatch, *typed, "--new-tokens", 2) == 0
    short = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["prediction"] for row in short] != [row["prediction"] for row in rows]
    assert all(len(row["prediction"]) <= 2 for row in short)  # a token is a character
    capsys.readouterr()
    assert command(monkeypatch, "runs", run.parent) == 0
    told = capsys.readouterr().out
    bill = json.loads((run / "metrics.json").read_text())
    assert all(word in told for word in ("one", "done", "green", "rho 1", "mine.jsonl"))
    assert f"{bill['after']['loss']:.4f}" in told


def test_a_run_is_talked_to(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], run: Path, data: Path
) -> None:
    capsys.readouterr()
    assert command(monkeypatch, "chat", run, "--prompt", "add 1", "--new-tokens", 3) == 0
    once = capsys.readouterr().out
    assert once.strip()
    monkeypatch.setattr(sys, "stdin", io.StringIO("add 1\nadd 2\n\n"))
    assert command(monkeypatch, "chat", run, "--new-tokens", 3, "--system", "be short") == 0
    assert capsys.readouterr().out.count("> ") == 3


def test_what_is_no_run_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "run.json").write_text("[")
    (tmp_path / "odd" / "config.yaml").write_text(": : :")
    assert command(monkeypatch, "runs", tmp_path / "empty") == 2
    assert "holds no runs" in capsys.readouterr().err
    assert command(monkeypatch, "runs", tmp_path / "none") == 2
    assert "no folder" in capsys.readouterr().err
    assert command(monkeypatch, "runs", tmp_path / "odd") == 0
    assert command(monkeypatch, "chat", tmp_path / "empty", "--prompt", "a") == 2
    assert "holds no config.json" in capsys.readouterr().err


def test_a_first_configuration_is_written_and_can_be_trained(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path,
    talker: Path, data: Path,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "new" / "run.yaml"
    typed = ["init", talker, "--task", data, "--rho", 0.6, "--out", out]
    assert command(monkeypatch, *typed) == 0
    asked = read(out, {})
    assert (asked.model, asked.task, asked.rho) == (str(talker), str(data), 0.6)
    assert asked.max_length == 64  # the longest row has 29 tokens
    assert (asked.batch_size, asked.accumulate) == (3, 1)  # of 90 rows: thirty steps
    assert command(monkeypatch, *typed) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert command(monkeypatch, *typed, "--overwrite") == 0
    assert command(monkeypatch, "train", "--config", out, "--generate", 0) == 0
    assert (tmp_path / "runs" / "green" / "model").is_dir()


@pytest.mark.parametrize("room", [0.0, 1e-4])
def test_where_little_fits_it_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, talker: Path, data: Path, room: float
) -> None:
    monkeypatch.setattr("greentrainer.plan.start.SPARE", room)
    out = tmp_path / "run.yaml"
    assert command(monkeypatch, "init", talker, "--task", data, "--out", out) == 0
    asked = read(out, {})
    assert asked.batch_size <= 3
    assert ("too much" in out.read_text()) == (room == 0)
    assert asked.activation_checkpointing == (room == 0)


def test_batches_may_be_as_large_as_fits(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path,
    talker: Path, data: Path,
) -> None:  # fmt: skip
    run = tmp_path / "run"
    typed = ["train", "--model", talker, "--task", data, "--output-dir", run, "--rho", 1,
             "--max-length", 32, "--generate", 0, "--accumulate", 2]  # fmt: skip
    assert command(monkeypatch, *typed, "--batch-size", "auto") == 0
    assert "batches of 8 x 1" in capsys.readouterr().out
    assert read(run / "config.yaml", {}).batch_size == 8
    assert command(monkeypatch, *typed, "--batch-size", "many") == 2
    assert "batch_size is 'many'" in capsys.readouterr().err


def test_what_fits_is_told_of_the_method(talker: Path) -> None:
    """Adapters take less room than full fine-tuning, so more rows fit; some cannot recompute."""
    asked: dict[str, Any] = {"model": str(talker), "max_length": 32}
    took = {}
    for method in ("full", "lora", "bitfit", "top_blocks"):
        config = RunConfig(method=method, **asked)
        took[method] = start._memory(config, 2)
        made, memory = start._fitting(config, took[method], 8)
        assert (made.batch_size, made.accumulate, memory) == (2, 4, took[method])
        assert not made.activation_checkpointing
    assert took["lora"] < 0.95 * took["full"]
    assert took["bitfit"] < 0.95 * took["full"]
    few = RunConfig(method="lora", load_in_4bit=True, **asked)
    assert start._memory(few, 2) < took["lora"]
    for more in ({"method": "prefix"}, {"method": "full_at_budget"}, {"method": "lora"}):
        made, _ = start._fitting(RunConfig(**(asked | more)), 0, 8)
        assert (made.batch_size, made.accumulate) == (1, 8)
        assert made.activation_checkpointing == (more["method"] == "lora")


def test_a_revision_is_of_a_model_on_the_hub(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path,
    talker: Path, data: Path,
) -> None:  # fmt: skip
    asked: list[Any] = []

    def opened(source: str, **options: Any) -> Any:
        asked.append((source, options["revision"], options["trust_remote_code"]))
        raise OSError("no network")

    typed = ["train", "--task", data, "--output-dir", tmp_path / "run", "--revision", "v2"]
    monkeypatch.setattr(tf.AutoConfig, "from_pretrained", opened)
    assert command(monkeypatch, *typed, "--model", "org/name") == 2
    assert asked == [("org/name", "v2", False)]
    assert command(monkeypatch, *typed, "--model", talker) == 2
    assert "leave it out for a folder" in capsys.readouterr().err


@pytest.mark.parametrize("tokens", ["0", "-3", "x", "1.5", ""])
def test_so_many_new_tokens_there_are_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path,
    talker: Path, data: Path, tokens: str,
) -> None:  # fmt: skip
    out = tmp_path / "answers.jsonl"
    typed = ["generate", talker, "--task", data, "--out", out, "--new-tokens", tokens]
    assert command(monkeypatch, *typed) == 2
    told = capsys.readouterr().err
    assert "--new-tokens" in told
    assert told.count("\n") == 1
    assert not out.exists()


def test_a_chat_ends_where_the_model_knows_no_further_position(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    model = saved(tmp_path / "opt", "opt", characters())  # of 64 positions
    typed = ["chat", model, "--new-tokens", 1000, "--prompt"]
    assert command(monkeypatch, *typed, "hello") == 0
    assert command(monkeypatch, *typed, 200 * "a") == 2
    assert "the chat has 200 tokens, and the model's" in capsys.readouterr().err
