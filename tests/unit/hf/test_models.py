"""Loading a model, and each refusal.  SmolLM2, which is rebuilt first, is in `test_smollm2`."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf

from greentrainer.hf import SMOLLM2, load
from tests.conformance.families import batch_for, build
from tests.tiny import characters, cut, refusal, saved


@pytest.mark.parametrize("family", ["llama", "gpt2", "t5", "bart"])
def test_a_saved_model_is_loaded(family: str, tmp_path: Path) -> None:
    model, tokenizer = load(str(saved(tmp_path, family)))
    original = build(family)
    assert type(model) is type(original)
    weights = original.state_dict()
    assert all(torch.equal(weights[key], value) for key, value in model.state_dict().items())
    assert (tokenizer.pad_token, tokenizer.eos_token) == ("<pad>", "</s>")
    model.train()(**batch_for(family)).loss.backward()


def test_weights_come_in_the_type_asked_for(tmp_path: Path) -> None:
    model, _ = load(str(saved(tmp_path)), dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_without_padding_the_end_of_sequence_pads(tmp_path: Path) -> None:
    model, tokenizer = load(str(saved(tmp_path, tokenizer=characters(pad_token=None))))
    assert tokenizer.pad_token == tokenizer.eos_token == "</s>"
    assert model.generation_config.pad_token_id == tokenizer.eos_token_id == 1


def edited(folder: Path, **settings: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save(build("llama").state_dict(), folder / "pytorch_model.bin")


def without_tokenizer(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()


def untyped(folder: Path) -> None:
    path = folder / "tokenizer.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model": {"type": "none"}}))


def headless(folder: Path) -> None:
    model: Any = build("llama")
    model.model.save_pretrained(folder)


QUANTISED = {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}}
BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no configuration": (lambda f: (f / "config.json").unlink(), "no config.json"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "no safetensors"),
    "pickled weights": (pickled, "no safetensors"),
    "no tokenizer": (without_tokenizer, "tokenizer"),
    "quantised": (lambda f: edited(f, **QUANTISED), "quantised"),
    "kernel of the hub": (lambda f: edited(f, attn_implementation="some/kernel"), "never run here"),
    "tokens of another kind": (lambda f: (f / "tokenizer_config.json").write_text("3"), "Error"),
    "tokenizer without a model": (untyped, "Exception"),
    "no head": (headless, "language-model head"),
    "other shapes": (lambda f: edited(f, hidden_size=64), "other shapes"),
    "no such type": (lambda f: edited(f, model_type="none-such"), "none-such"),
    "wrong setting": (lambda f: edited(f, hidden_size="wide"), "hidden_size"),
    "no language model": (lambda f: edited(f, model_type="vit"), "ViTConfig"),
    "configuration cut": (lambda f: cut(f / "config.json", 40), "not a valid JSON"),
    "weights cut": (lambda f: cut(f / "model.safetensors", 4000), "deserializing"),
    "weights empty": (lambda f: cut(f / "model.safetensors", 0), "deserializing"),
    "tokenizer cut": (lambda f: cut(f / "tokenizer.json", 100), "line"),
    "tokenizer empty": (lambda f: (f / "tokenizer.json").write_text("{}"), "added_tokens"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_folder_is_refused_in_one_line(kind: str, tmp_path: Path) -> None:
    breaks, reason = BROKEN[kind]
    breaks(saved(tmp_path))
    with refusal(str(tmp_path), reason):
        load(str(tmp_path))


@pytest.mark.parametrize("pad", ["<pad>", None])
def test_a_tokenizer_without_an_end_is_refused(pad: str | None, tmp_path: Path) -> None:
    saved(tmp_path, tokenizer=characters(eos_token=None, pad_token=pad))
    with refusal(str(tmp_path), "no end-of-sequence token"):
        load(str(tmp_path))


def test_what_is_no_folder_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.touch()
    with refusal(str(file), "is a file"):
        load(str(file))
    for name in (str(tmp_path / "none"), "./none", "~/none", "one/two/three"):
        with refusal("no folder", name, SMOLLM2):
            load(name)
    with refusal("no such folder here", "Repo id"):
        load("no hub id!")


CODE = {
    "AutoConfig": "code.Config",
    "AutoModelForCausalLM": "code.Model",
    "AutoTokenizer": ["code.Tokenizer", None],
}


@pytest.mark.parametrize("model_type", ["llama", "none-such"])
def test_code_beside_a_model_is_never_run(model_type: str, tmp_path: Path) -> None:
    """A known type is loaded without the code, an unknown one is refused."""
    folder, marker = saved(tmp_path / "model"), tmp_path / "marker"
    (folder / "code.py").write_text(f"open({str(marker)!r}, 'w').close()\n")
    edited(folder, model_type=model_type, auto_map=CODE)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "auto_map": CODE}))
    if model_type == "llama":
        assert isinstance(load(str(folder))[0], tf.LlamaForCausalLM)
    else:
        with refusal(str(folder), "such code is never run here"):
            load(str(folder))
    assert not marker.exists()
