"""The commands, as a user types them, on a tiny model and a file of rows."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
import yaml

from greentrainer import cli
from greentrainer.tasks import metrics
from tests.tiny import saved

FLAGS = ["--batch-size", "4", "--max-length", "32", "--generate", "2", "--selections", "1",
         "--probe-batches", "1", "--learning-rate", "1e-3"]  # fmt: skip


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return saved(tmp_path / "base")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "mine.jsonl"
    lines = [{"prompt": f"add {i} and {i}", "completion": f"it is {2 * i}"} for i in range(100)]
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return path


def command(monkeypatch: pytest.MonkeyPatch, *words: Any) -> int:
    """Type a command; its exit code."""
    monkeypatch.setattr(sys, "argv", ["greentrainer", *map(str, words)])
    try:
        cli.main()
    except SystemExit as leave:
        return int(leave.code or 0)
    return 0


def test_train_leaves_a_folder_with_a_model_and_its_bill(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path,
    model: Path, data: Path,
) -> None:  # fmt: skip
    run = tmp_path / "run"
    typed = ["train", "--model", model, "--task", data, "--rho", 0.6, "--output-dir", run, *FLAGS]
    assert command(monkeypatch, *typed) == 0
    assert "FLOPs" in capsys.readouterr().out
    names = {
        "config.yaml",
        "run.json",
        "costs.json",
        "steps.jsonl",
        "report.html",
        "ledger.jsonl",
        "selections.jsonl",
        "log.jsonl",
        "metrics.json",
        "predictions.jsonl",
        "model",
    }
    assert {path.name for path in run.iterdir()} == names
    summary = json.loads((run / "metrics.json").read_text())
    lines = (run / "predictions.jsonl").read_text().splitlines()
    answered = [json.loads(line) for line in lines]
    assert [row["prediction"] for row in answered] == summary["after"]["predictions"]
    assert all(row["prompt"].startswith("add ") for row in answered)
    assert all(row["references"][0].startswith("it is ") for row in answered)
    assert len(answered) == 2
    bill = summary["bill"]
    assert 0.5 <= bill["rho_spent"] <= 0.6
    assert bill["ending"] in ("every step was made", "the budget is spent")
    trained: Any = tf.AutoModelForCausalLM.from_pretrained(run / "model")
    base: Any = tf.AutoModelForCausalLM.from_pretrained(model)
    pairs = zip(trained.parameters(), base.parameters(), strict=True)
    assert any(not torch.equal(a, b) for a, b in pairs)
    assert command(monkeypatch, "train", "--config", run / "config.yaml") == 2
    told = " ".join(capsys.readouterr().err.split())
    assert "add --overwrite to lose it" in told
    assert f"--output-dir {tmp_path / 'run-2'}" in told
    wrong = ["train", "--config", run / "config.yaml", "--overwrite"]
    assert command(monkeypatch, *wrong, "--task", tmp_path / "none.jsonl") == 2
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    late = ["--method", "prefix", "--activation-checkpointing"]  # refused once the model is there
    assert command(monkeypatch, *wrong, *late) == 2
    assert "holds the earlier run as it was" in capsys.readouterr().out
    after = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    assert after == before  # nothing is removed for a run that cannot be
    (run / "notes.txt").write_text("mine")
    assert command(monkeypatch, "train", "--config", run / "config.yaml", "--overwrite") == 0
    assert (run / "notes.txt").read_text() == "mine"
    assert not yaml.safe_load((run / "config.yaml").read_text())["overwrite"]
    (run / "notes.txt").unlink()
    again = json.loads((run / "metrics.json").read_text())
    assert again["bill"]["spent_flops"] == bill["spent_flops"]


def test_every_way_to_train_runs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model: Path, data: Path
) -> None:
    run = tmp_path / "run"
    more = ["--bf16", "--activation-checkpointing", "--accumulate", 2, "--lora-rank", 2,
            "--evaluate-every", 3, "--patience", 9, "--set", "training.lr_scheduler_type=cosine",
            "--set", "training.max_grad_norm=0.5"]  # fmt: skip
    typed = ["train", "--model", model, "--task", data, "--rho", 0.8, "--output-dir", run]
    assert command(monkeypatch, *typed, *FLAGS, *more) == 0
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert any("eval_loss" in entry for entry in log)
    config = yaml.safe_load((run / "config.yaml").read_text())
    tf.AutoModelForCausalLM.from_pretrained(run / "model")  # adapters are merged
    assert command(monkeypatch, "evaluate", run / "model", "--task", data, "--generate", 1) == 0
    assert config["training"] == {"lr_scheduler_type": "cosine", "max_grad_norm": 0.5}


def test_activations_are_kept_where_it_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path,
    model: Path, data: Path,
) -> None:  # fmt: skip
    run, kept = tmp_path / "run", tmp_path / "kept"
    typed = ["train", "--model", model, "--task", data, "--rho", 0.5, "--output-dir", run, *FLAGS,
             "--epochs", 3, "--passes", "all", "--set", "keep_activations=disk",
             "--set", f"keep_folder={kept}", "--set", "keep_bytes=100000000",
             "--set", "keep_bfloat16=true"]  # fmt: skip
    assert command(monkeypatch, *typed) == 0
    assert "kept activations" in capsys.readouterr().out
    bill = json.loads((run / "metrics.json").read_text())["bill"]
    assert bill["skipped_flops"] > 0
    assert bill["rho_spent"] <= 0.5
    assert list(kept.iterdir()) == []


def test_evaluate_measures_what_was_trained(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], model: Path, data: Path
) -> None:
    typed = ["evaluate", model, "--task", data, "--max-length", 32, "--generate", 2]
    assert command(monkeypatch, *typed) == 0
    greedy = capsys.readouterr().out
    assert "loss" in greedy
    assert "rougeL" in greedy


@pytest.mark.parametrize(("flags", "beams"), [([], 1), (["--decoding", "paper"], 4)])
def test_evaluate_writes_as_it_is_told(
    monkeypatch: pytest.MonkeyPatch, model: Path, data: Path, flags: list[str], beams: int
) -> None:
    asked: list[int] = []

    def generate(_: Any, __: Any, prompts: list[Any], decoding: metrics.Decoding, *___: Any) -> Any:
        asked.append(decoding.num_beams)
        return [""] * len(prompts)

    monkeypatch.setattr(metrics, "generate", generate)
    typed = ["evaluate", model, "--task", data, "--max-length", 32, "--generate", 2]
    assert command(monkeypatch, *typed, *flags) == 0
    assert asked == [beams]


def test_a_dry_run_shows_the_configuration_and_one_example(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path,
    model: Path, data: Path,
) -> None:  # fmt: skip
    run = tmp_path / "run"
    typed = ["train", "--model", model, "--task", data, "--output-dir", run, *FLAGS, "--dry-run"]
    assert command(monkeypatch, *typed) == 0
    out = capsys.readouterr().out
    assert "rho: 0.5" in out
    assert "it is" in out
    assert "labelled" in out
    assert "23 steps of 4 in 1 passes over 90 examples" in " ".join(out.split())
    assert "of the positions are padding" in " ".join(out.split())
    assert not run.exists()


WRONG = [
    (["--rho", "1.5"], "rho is 1.5"),
    (["--rho", "0.001"], "choose it between 0."),
    (["--set", "lerning_rate=1"], "did you mean 'learning_rate'"),
    (["--set", "training.max_grad_nrm=1"], "did you mean 'max_grad_norm'"),
    (["--set", "training.learning_rate=1"], "set by the run's own keys"),
    (["--set", "nonsense"], "NAME=VALUE"),
    (["--set", "training.max_grad_norm=none"], "training.max_grad_norm is 'none'"),
    (["--set", "training=3", "--set", "training.x=1"], "training was set to 3 before"),
    (["--set", "training.optim=schedule_free_adamw"], "schedulefree"),
    (["--set", "training.report_to=wandb"], "wandb"),
    (["--patience", "3"], "patience needs evaluate_every"),
    (["--task", "none.jsonl"], "cannot read none.jsonl"),
    (["--task", "summarise"], "no task 'summarise'"),
    (["--model", "./nowhere"], "no folder './nowhere'"),
    (["--config", "none.yaml"], "cannot read the configuration none.yaml"),
    (["--epochs", "many"], "epochs"),
    (["--set", "validation_limit=999"], "validation_limit is 999 and there are"),
    (["--set", "virtual_tokens=0"], "virtual_tokens is 0"),
    (["--method", "lorra"], "method is 'lorra'"),
    (["--set", "keep_activations=tape"], "keep_activations is 'tape'"),
    (
        ["--epochs", "2", "--set", "keep_activations=disk", "--set", "keep_folder=/proc/none"],
        "cannot keep activations in /proc/none",
    ),
    (["--learning-rate", "1e30"], "lower the learning rate"),
]


@pytest.mark.parametrize(("words", "message"), WRONG, ids=[" ".join(w) for w, _ in WRONG])
def test_a_mistake_is_one_line_that_says_what_to_change(
    words: list[str], message: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], tmp_path: Path, model: Path, data: Path,
) -> None:  # fmt: skip
    typed = ["train", "--model", model, "--task", data, "--output-dir", tmp_path / "run", *FLAGS]
    assert command(monkeypatch, *typed, *words) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ")
    assert "\n" not in error
    assert message in error


def test_a_delta_and_its_base_give_the_model_back(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path,
    model: Path, data: Path,
) -> None:  # fmt: skip
    run = tmp_path / "run"
    typed = ["train", "--model", model, "--task", data, "--rho", 0.6, "--output-dir", run, *FLAGS]
    assert command(monkeypatch, *typed) == 0
    assert command(monkeypatch, "delta", model, run / "model", tmp_path / "delta") == 0
    assert "of a full checkpoint" in capsys.readouterr().out
    assert command(monkeypatch, "merge", model, tmp_path / "delta", tmp_path / "merged") == 0
    a: Any = tf.AutoModelForCausalLM.from_pretrained(run / "model")
    b: Any = tf.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
    wrong = ["merge", run / "model", tmp_path / "delta", tmp_path / "other"]
    assert command(monkeypatch, *wrong) == 2
    assert "another base model" in capsys.readouterr().err


@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.thorough)]
)
def test_an_interrupted_run_saves_and_resumes(
    number: signal.Signals, tmp_path: Path, model: Path, data: Path
) -> None:
    def typed(folder: str, *more: str) -> list[str]:
        words = ["train", "--model", str(model), "--task", str(data), "--rho", "0.6", "--epochs",
                 "16", "--output-dir", str(tmp_path / folder), *FLAGS, *more]  # fmt: skip
        return [sys.executable, "-m", "greentrainer.cli", *words]

    quiet = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    child = subprocess.Popen(
        typed("cut"), env=quiet, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert child.stdout is not None
    for line in child.stdout:
        if "evaluating the model as it is" in line:
            break
    steps = tmp_path / "cut" / "steps.jsonl"
    while child.poll() is None and not (steps.is_file() and steps.stat().st_size):
        time.sleep(0.02)
    child.send_signal(number)
    child.communicate(timeout=120)
    assert child.returncode == 130
    bill = json.loads((tmp_path / "cut" / "metrics.json").read_text())["bill"]
    assert bill["interrupted"]
    assert 0 < bill["steps"] < bill["planned_steps"]
    tf.AutoModelForCausalLM.from_pretrained(tmp_path / "cut" / "model")
    refused = subprocess.run(typed("cut"), env=quiet, capture_output=True, text=True, check=False)
    assert "holds an earlier run" in refused.stderr
    other = typed("cut", "--resume", "--learning-rate", "1e-4")
    refused = subprocess.run(other, env=quiet, capture_output=True, text=True, check=False)
    assert "learning_rate was 0.001 in the run to resume" in refused.stderr
    subprocess.run(typed("cut", "--resume"), env=quiet, check=True, capture_output=True)
    subprocess.run(typed("whole"), env=quiet, check=True, capture_output=True)
    a: Any = tf.AutoModelForCausalLM.from_pretrained(tmp_path / "cut" / "model")
    b: Any = tf.AutoModelForCausalLM.from_pretrained(tmp_path / "whole" / "model")
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
