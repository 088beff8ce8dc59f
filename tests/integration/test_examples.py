"""The examples run as they stand, on tiny models, and stay within what they ask for."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import transformers as tf

from tests.tiny import characters

EXAMPLES = Path(__file__).parents[2] / "examples"
CHAT = "{% for m in messages %}{{ m['role'] + ':' + m['content'] + '\n' }}{% endfor %}"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder and an encoder-decoder with room for the rows, whose tokens are characters."""
    folder = tmp_path_factory.mktemp("models")
    tokenizer = characters()
    tokenizer.chat_template = CHAT
    config = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3,
              "num_attention_heads": 4, "max_position_embeddings": 256, "eos_token_id": 1,
              "pad_token_id": 0, "bos_token_id": 3}  # fmt: skip
    decoder: Any = tf.AutoModelForCausalLM.from_config(tf.LlamaConfig(**config))
    t5 = tf.T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4,
                     decoder_start_token_id=0)  # fmt: skip
    pair: Any = tf.AutoModelForSeq2SeqLM.from_config(t5)
    for name, model in (("decoder", decoder), ("seq2seq", pair)):
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return folder


def run(example: str, model: Path, launcher: tuple[str, ...] = ()) -> list[float]:
    """The shares that an example prints."""
    done = subprocess.run(
        [sys.executable, *launcher, str(EXAMPLES / f"{example}.py"), str(model)],
        capture_output=True, text=True, check=False, timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return [float(share) for share in re.findall(r"spent (\d\.\d+)", done.stdout)]


@pytest.mark.parametrize(
    ("example", "kind", "rho"),
    [
        ("plain_loop", "decoder", 0.6),
        pytest.param("trainer", "decoder", 0.6, marks=pytest.mark.thorough),
        pytest.param("seq2seq", "seq2seq", 0.6, marks=pytest.mark.thorough),
        pytest.param("lora", "decoder", 0.8, marks=pytest.mark.thorough),
        pytest.param("sft", "decoder", 0.6, marks=pytest.mark.thorough),
        pytest.param("dpo", "decoder", 0.8, marks=pytest.mark.thorough),
    ],
)
def test_example(example: str, kind: str, rho: float, models: Path) -> None:
    (share,) = run(example, models / kind)
    assert 0.9 * rho <= share <= rho


@pytest.mark.thorough
def test_the_trainer_example_on_two_processes(models: Path) -> None:
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    shares = run("trainer", models / "decoder", launcher)
    assert len(shares) == 2
    assert all(0.9 * 0.6 <= share <= 0.6 for share in shares)
