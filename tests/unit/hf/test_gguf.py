"""A model out of a GGUF file: the same weights and tokens, and each refusal."""

import json
import struct
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf

from greentrainer.hf import adapters, load, models, packing_of
from tests.conformance.families import batch_for, build
from tests.gguf_files import write_gguf
from tests.tiny import EOS, PAD, characters, cut, refusal

pytestmark = pytest.mark.skipif(find_spec("gguf") is None, reason="gguf is not installed")


def logits(model: Any) -> torch.Tensor:
    found: torch.Tensor = model.eval()(torch.arange(20)[None]).logits
    return found.detach()


@pytest.mark.parametrize("name", ["tiny.gguf", "", "TINY.GGUF"])
def test_a_file_or_the_folder_of_one_is_loaded(name: str, tmp_path: Path) -> None:
    write_gguf(tmp_path / (name or "only.gguf"))
    told: list[str] = []
    model, tokenizer = load(str(tmp_path / name), notify=told.append)
    torch.testing.assert_close(logits(model), logits(build("llama")), rtol=0, atol=1e-6)
    assert tokenizer("ab a\n", add_special_tokens=False).input_ids == [62, 40, 4, 41]
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (PAD, EOS)
    assert len(tokenizer) == model.config.vocab_size  # none but the file's
    assert max(tokenizer("<|endoftext|> a</s>").input_ids) < model.config.vocab_size
    assert tokenizer("a</s>").input_ids[-1] == EOS
    assert tokenizer.model_max_length == model.config.max_position_embeddings
    assert len(told) == 1
    assert "lost" not in told[0]
    assert "F32" in told[0]


def test_quantised_weights_are_unpacked_into_the_type_asked_for(tmp_path: Path) -> None:
    told: list[str] = []
    file = str(write_gguf(tmp_path / "tiny.gguf", quantised=True))
    model, _ = load(file, dtype=torch.bfloat16, notify=told.append)
    original: Any = build("llama")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    for name, kept in original.state_dict().items():
        value = model.state_dict()[name]
        largest = float(kept.abs().max())
        # half a step of 1/127 of a block's largest value, and bfloat16's eight bits
        assert float((value - kept).abs().max()) <= largest * (0.5 / 127 + 2**-8), name
    assert told == [str(packing_of(model))]
    assert "tiny.gguf (Q8_0, F32): what quantising them lost" in told[0]
    assert packing_of(original) is None


def test_it_trains_and_is_saved_as_any_model(tmp_path: Path) -> None:
    model, tokenizer = load(str(write_gguf(tmp_path / "tiny.gguf", quantised=True)))
    model.train()(**batch_for("llama")).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    model.save_pretrained(tmp_path / "saved")
    tokenizer.save_pretrained(tmp_path / "saved")
    assert "quantization_config" not in json.loads((tmp_path / "saved/config.json").read_text())
    again, same = load(str(tmp_path / "saved"))
    assert torch.equal(logits(again), logits(model))
    assert len(same) == len(tokenizer)
    assert same("abc 12").input_ids == tokenizer("abc 12").input_ids


def test_what_lies_beside_the_file_is_no_part_of_it(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "tiny.gguf")
    characters(before="<s>", pad_token="<unk>").save_pretrained(tmp_path)
    tf.LlamaConfig(hidden_size=64, vocab_size=9).save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 7}')
    model, tokenizer = load(str(file))
    assert model.config.hidden_size == 32
    assert model.generation_config.eos_token_id == EOS
    assert tokenizer("ab").input_ids == [62]


def test_without_weights(tmp_path: Path) -> None:
    file = str(write_gguf(tmp_path / "tiny.gguf"))
    network, tokenizer = models.sketch(file)
    assert {parameter.device.type for parameter in network.parameters()} == {"meta"}
    assert network.config.hidden_size == 32
    assert tokenizer.eos_token == "</s>"
    assert isinstance(models.load_tokenizer(file)[0], tf.LlamaConfig)


@pytest.mark.parametrize(("splits", "known"), [("smollm", True), ("gpt-2", True), ("odd", False)])
def test_a_way_to_split_that_is_not_known_is_told(splits: str, known: bool, tmp_path: Path) -> None:
    told: list[str] = []
    models.load_tokenizer(
        str(write_gguf(tmp_path / "tiny.gguf", splits=splits)), notify=told.append
    )
    assert told == [] if known else "'odd'" in told[0]


def test_an_adapter_finds_its_base_in_the_file(tmp_path: Path) -> None:
    peft = adapters.peft()
    warnings.filterwarnings("ignore", r"Could not find a config file in .*\.gguf", UserWarning)
    model, tokenizer = load(str(write_gguf(tmp_path / "tiny.gguf")))
    write_gguf(tmp_path / "other.gguf", quantised=True)
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"], r=2))
    adapted.save_pretrained(tmp_path / "adapter")
    tokenizer.save_pretrained(tmp_path / "adapter")
    again, _ = load(str(tmp_path / "adapter"))
    torch.testing.assert_close(logits(again), logits(build("llama")), rtol=0, atol=1e-6)


BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "empty": (lambda f: f.write_bytes(b""), "no GGUF file"),
    "text": (lambda f: f.write_text("weights\n" * 99), "no GGUF file"),
    "begins as one": (lambda f: f.write_bytes(b"GGUF" + bytes(range(99))), "cut short, or is"),
    "nothing in it": (lambda f: f.write_bytes(b"GGUF\3" + bytes(19)), "no model"),
    "cut in the header": (lambda f: cut(f, 300), "cut short"),
    "cut in the tensors' table": (lambda f: cut(f, 3000), "cut short"),
    "cut in the weights": (lambda f: cut(f, f.stat().st_size // 2), "cut short"),
    "cut at the end": (lambda f: cut(f, f.stat().st_size - 40), "cut short"),
    "unknown architecture": (lambda f: write_gguf(f, architecture="none-such"), "none-such"),
    "no tokenizer": (lambda f: write_gguf(f, tokenizer=False), "without a tokenizer"),
    "too many tokens": (
        lambda f: write_gguf(f, more=2),
        "knows 66 tokens, and the model embeds 64",
    ),
    "one of several parts": (lambda f: write_gguf(f, parts=3), "llama-gguf-split --merge"),
    "no head": (lambda f: write_gguf(f, without="output_norm.weight"), "missing"),
    "a matrix left out": (lambda f: write_gguf(f, without="blk.1.ffn_up.weight"), "missing"),
}


def test_a_list_longer_than_the_file_is_refused_at_once(tmp_path: Path) -> None:
    """The package that reads it would go through it for days."""
    for order in "<>":
        head = struct.pack(f"{order}IQQQ", 3, 0, 1, 1) + b"a"
        for kind, count in ((4, 2**40), (8, 2**40), (9, 2**40)):
            path = tmp_path / "long.gguf"
            path.write_bytes(b"GGUF" + head + struct.pack(f"{order}IIQ", 9, kind, count))
            with refusal(str(path), "cut short, or is damaged"):
                load(str(path))


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_file_is_refused_in_one_line(kind: str, tmp_path: Path) -> None:
    breaks, reason = BROKEN[kind]
    file = write_gguf(tmp_path / "tiny.gguf")
    breaks(file)
    with refusal(str(file), reason):
        load(str(file))


def test_what_is_asked_in_vain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = str(write_gguf(tmp_path / "a.gguf"))
    with refusal("4 bits", "original"):
        load(file, bits=4)
    with refusal("leave it out for a file"):
        load(file, revision="main")
    with refusal("no file", "org/name:file.gguf"):
        load(str(tmp_path / "none.gguf"))
    write_gguf(tmp_path / "b.gguf")
    with refusal("2 GGUF files", "a.gguf, b.gguf"):
        load(str(tmp_path))
    monkeypatch.setattr(tf.utils, "is_gguf_available", lambda: False)
    with refusal("greentrainer[gguf]"):
        load(file)


def test_a_file_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def cached(name: str, file: str, revision: str | None) -> str:
        asked.append((name, file, revision))
        return str(write_gguf(tmp_path / "blob"))

    monkeypatch.setattr(tf.utils, "cached_file", cached)
    model, _ = load("org/name:q8/tiny.gguf", revision="v1")
    assert asked == [("org/name", "q8/tiny.gguf", "v1")]
    assert model.config.name_or_path == "org/name:q8/tiny.gguf"
    assert str(packing_of(model)).startswith("weights out of tiny.gguf")
