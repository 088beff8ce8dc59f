"""What the other examples train on: the `pydoc` task, from the standard library on this machine."""

import sys
from typing import Any

from greentrainer import tasks
from greentrainer.hf import load
from greentrainer.tasks import Encoded
from greentrainer.tasks.encode import Collator, encode_all


def model_and_rows(count: int = 48, max_length: int = 128) -> tuple[Any, Any, list[Encoded]]:
    """The model named on the command line (or SmolLM2-135M), its tokenizer, and encoded rows."""
    model, tokenizer = load(sys.argv[1] if len(sys.argv) > 1 else "smollm2-135m")
    examples = tasks.load("pydoc").examples("train")[:count]
    seq2seq = bool(model.config.is_encoder_decoder)
    return model, tokenizer, encode_all(examples, tokenizer, max_length, seq2seq)


def collator(tokenizer: Any) -> Collator:
    """Pads a batch of rows."""
    return Collator(tokenizer.pad_token_id)
