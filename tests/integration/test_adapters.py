"""Adapters that are saved beside a model and loaded with it, as a user types the commands."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf

from greentrainer.config import RunConfig
from greentrainer.hf import adapters, load
from greentrainer.hf.models import load_tokenizer
from greentrainer.methods import METHODS, lora
from greentrainer.tasks.positions import limit
from tests.conformance.families import batch_for, build
from tests.integration.test_cli import FLAGS, command
from tests.tiny import refusal, saved

WINDOW = ["--max-length", 32]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "mine.jsonl"
    lines = [{"prompt": f"add {i} and {i}", "completion": f"it is {2 * i}"} for i in range(40)]
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return path


def trained(
    patch: pytest.MonkeyPatch, folder: Path, data: Path, method: str, family: str = "llama"
) -> Path:
    """A run's folder."""
    run = folder / "run"
    typed = ["train", "--model", saved(folder / "base", family), "--task", data, "--method", method,
             "--output-dir", run, *FLAGS]  # fmt: skip
    typed += [] if method == "lora" else ["--set", "virtual_tokens=3"]
    assert command(patch, *typed) == 0
    return run


@pytest.mark.parametrize(
    ("method", "family"),
    [("prompt", "llama"), ("prefix", "llama"), ("prefix", "t5"), ("lora", "gpt2")],
)
def test_what_was_trained_is_what_is_evaluated(
    method: str, family: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, data: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    run = trained(monkeypatch, tmp_path, data, method, family)
    summary = json.loads((run / "metrics.json").read_text())
    assert summary["after"]["loss"] != summary["before"]["loss"]
    assert adapters.is_adapter(run / "model") is (method != "lora")
    capsys.readouterr()
    monkeypatch.chdir(tmp_path)
    typed = ["evaluate", "run/model", "--task", data, "--batch-size", 4, "--generate", 2, *WINDOW]
    assert command(monkeypatch, *typed) == 0
    out = capsys.readouterr().out.splitlines()
    figures = {line.split()[0]: line.split()[-1] for line in out}
    for name in ("loss", "rouge1"):
        assert figures[name] == f"{summary['after'][name]:.4f}"
    again, _ = load(str(run / "model"))
    assert any(parameter.requires_grad for parameter in again.parameters())


@pytest.mark.thorough
def test_a_model_with_virtual_tokens_is_trained_further_but_not_wrapped_twice(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained(monkeypatch, tmp_path, data, "prompt")
    typed = ["train", "--model", run / "model", "--task", data, "--output-dir", tmp_path / "two",
             *FLAGS]  # fmt: skip
    assert command(monkeypatch, *typed, "--method", "full") == 0
    first, second = (load(str(tmp_path / name / "model"))[0] for name in ("run", "two"))
    moved = {
        name
        for (name, a), b in zip(first.named_parameters(), second.parameters(), strict=True)
        if not torch.equal(a, b)
    }
    assert moved == {"prompt_encoder.default.embedding.weight"}
    capsys.readouterr()
    assert command(monkeypatch, *typed, "--method", "lora", "--overwrite") == 2
    assert "the model has an adapter already" in capsys.readouterr().err


def test_low_rank_adapters_become_part_of_the_weights(tmp_path: Path) -> None:
    saved(tmp_path / "base")
    base, _ = load(str(tmp_path / "base"))
    wrapped = lora.wrapped(base, 2, "all-linear", 4, 0.0)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(0))
    wrapped.save_pretrained(tmp_path / "adapter")
    model, tokenizer = load(str(tmp_path / "adapter"))
    assert type(model) is type(build("llama"))
    assert all(parameter.requires_grad for parameter in model.parameters())
    wanted = wrapped.eval()(**batch_for("")).logits
    torch.testing.assert_close(model.eval()(**batch_for("")).logits, wanted, rtol=1e-4, atol=1e-5)
    config, other = load_tokenizer(str(tmp_path / "adapter"))
    assert config.model_type == "llama"
    assert other.get_vocab() == tokenizer.get_vocab()


@pytest.mark.parametrize("method", ["prefix", "prompt", "lora"])
def test_an_adapter_names_its_bases_revision(method: str, tmp_path: Path) -> None:
    base, _ = load(str(saved(tmp_path / "base")))
    config = RunConfig(model="org/name", revision="v2", method=method)  # type: ignore[arg-type]
    METHODS[method].adapt(base, config).save_pretrained(tmp_path / "adapter")
    assert json.loads((tmp_path / "adapter" / adapters.CONFIG).read_text())["revision"] == "v2"


def test_the_base_is_loaded_in_the_revision_that_the_adapter_names(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    base, _ = load(str(saved(tmp_path / "base")))
    lora.wrapped(base, 2, "all-linear", 4, 0.0).save_pretrained(tmp_path / "adapter")
    path = tmp_path / "adapter" / adapters.CONFIG
    named = json.loads(path.read_text())
    assert named["revision"] is None
    key = "base_model_name_or_path"
    path.write_text(json.dumps({**named, "revision": "v2"}))
    load(str(tmp_path / "adapter"))  # a folder has no revisions
    path.write_text(json.dumps({**named, key: "org/name", "revision": "v2"}))
    assert adapters.base_of(tmp_path / "adapter") == ("org/name", "v2")
    asked = []

    def configured(name: str, **options: Any) -> Any:
        asked.append((name, options["revision"]))
        raise OSError("no network in a test")

    monkeypatch.setattr(tf.AutoConfig, "from_pretrained", configured)
    for open_it in (load, load_tokenizer):
        with refusal("org/name", "no network"):
            open_it(str(tmp_path / "adapter"))
    assert asked == [("org/name", "v2")] * 2
    path.write_text(json.dumps({**named, key: "org/name", "revision": 2}))
    with refusal("the revision is 2"):
        load(str(tmp_path / "adapter"))


def test_what_is_wrong_with_an_adapter_is_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = trained(monkeypatch, tmp_path, data, "prompt") / "model"

    def refused(change: dict[str, Any] | str, *words: str) -> None:
        folder = tmp_path / "broken"
        shutil.copytree(model, folder)
        config = folder / adapters.CONFIG
        text = config.read_text()
        config.write_text(
            change if isinstance(change, str) else json.dumps({**json.loads(text), **change})
        )
        for open_it in (load, load_tokenizer):
            with refusal(*words):
                open_it(str(folder))
        shutil.rmtree(folder)

    key = "base_model_name_or_path"
    refused("{", "names no base model")
    refused("[]", "names no base model")
    refused({key: None}, "names no base model")
    refused({key: str(tmp_path / "nowhere")}, "is gone from", "put it back")
    refused({key: str(model)}, "belongs to another adapter")
    saved(tmp_path / "pickled")
    weights = tmp_path / "pickled" / "model.safetensors"
    weights.rename(weights.with_name("pytorch_model.bin"))
    refused({key: str(tmp_path / "pickled")}, "holds no safetensors")
    with refusal("does not fit its base model"):
        edited = json.loads((model / adapters.CONFIG).read_text()) | {"num_virtual_tokens": 9}
        (model / adapters.CONFIG).write_text(json.dumps(edited))
        load(str(model))
    (model / adapters.WEIGHTS).unlink()
    torch.save({}, model / "adapter_model.bin")
    capsys.readouterr()
    assert command(monkeypatch, "evaluate", model, "--task", data, *WINDOW) == 2
    assert f"holds no {adapters.WEIGHTS}" in capsys.readouterr().err


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("family", "words", "most"),
    [
        ("gpt2", ["--method", "full", "--max-length", 65], 64),
        ("opt", ["--method", "full", "--max-length", 65], 64),
        ("bart", ["--method", "full", "--max-length", 65], 64),
        ("gpt2", ["--method", "prompt", "--max-length", 64, "--set", "virtual_tokens=3"], 61),
        ("opt", ["--method", "prefix", "--max-length", 64, "--set", "virtual_tokens=3"], 61),
    ],
)
def test_a_text_must_fit_the_models_table_of_positions(
    family: str, words: list[Any], most: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """The longest that is not refused can be trained on."""
    path = tmp_path / "long.jsonl"
    lines = [{"prompt": f"{i}" + "x" * 99, "completion": f"{i}"} for i in range(12)]
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    typed = ["train", "--model", saved(tmp_path / "base", family), "--task", path, *FLAGS,
             "--output-dir", tmp_path / "run"]  # fmt: skip
    capsys.readouterr()
    assert command(monkeypatch, *typed, *words) == 2
    error = capsys.readouterr().err
    assert f"set max_length to {most} or less" in error
    assert error.count("\n") == 1
    assert command(monkeypatch, *typed, *words, "--max-length", most, "--generate", 1) == 0


@pytest.mark.parametrize("family", ["llama", "bloom", "t5"])
def test_computed_positions_go_on(family: str) -> None:
    assert limit(build(family)) is None
