"""A tokenizer without a padding token: batches and generation are as with one."""

from typing import Any

import pytest
import torch

from greentrainer.tasks import Example
from greentrainer.tasks.encode import Collator, encode_all, encode_prompt, pad_id
from greentrainer.tasks.metrics import Decoding, generate, loss_per_token
from tests.conformance.families import build
from tests.tiny import EOS, characters

EXAMPLES = [Example("a long prompt", "an end.", ": "), Example("p", "c", ": ")]
PADDED, BARE = characters(), characters(pad_token=None)


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_padding_with_the_end_changes_no_result(family: str) -> None:
    model: Any = build(family)
    two_sided = model.config.is_encoder_decoder
    losses, texts = [], []
    for tokenizer in (PADDED, BARE):
        encoded = encode_all(EXAMPLES, tokenizer, 40, two_sided)
        batch = Collator(pad_id(tokenizer), 8)(encoded)
        losses.append(loss_per_token(model, [batch]))
        prompts = [encode_prompt(example, tokenizer, 40, two_sided) for example in EXAMPLES]
        texts.append(generate(model, tokenizer, prompts, Decoding(6)))
    assert batch["input_ids"][1, -1] == EOS
    assert not torch.equal(batch["attention_mask"][1], torch.ones_like(batch["input_ids"][1]))
    assert losses[0] == losses[1]
    bare = [text.replace("<pad>", "").strip() for text in texts[1]]  # there an ordinary token
    assert texts[0] == bare
