"""What a model writes: greedy decoding or beam search, batched, the same as one by one."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from inspect import signature
from itertools import groupby
from typing import Any

import torch
from transformers import GenerationMixin

from greentrainer.records import over
from greentrainer.tasks.encode import pad_id
from greentrainer.tasks.modes import evaluating
from greentrainer.tasks.segments import stop_ids

Prompt = str | Sequence[int]
"""A text, or the tokens that `encode_prompt` made of an example."""


@dataclass(frozen=True)
class Decoding:
    """How texts are written; greedily by default.

    max_new_tokens: where a text is cut off, if no end of sequence came before.
    num_beams: continuations kept at each step; 1 is greedy decoding.
    repetition_penalty: divides the logits, or multiplies those below 0, of tokens that are in the
        sequence already (a decoder-only model's prompt included); 1 is none.
    length_penalty: power of the length that a beam's log-probability is divided by.
    """

    max_new_tokens: int = 48
    num_beams: int = 1
    repetition_penalty: float = 1.0
    length_penalty: float = 1.0


GREEDY = Decoding()
PAPER = Decoding(max_new_tokens=64, num_beams=4, repetition_penalty=2.5)
"""The paper's settings."""

_PLAIN = {
    "do_sample": False,
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
    "no_repeat_ngram_size": 0,
    "min_length": 0,
    "early_stopping": False,
}
"""Undoes what a model's own generation config may ask for; `Decoding` sets the rest."""


def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    decoding: Decoding = GREEDY,
    batch_size: int = 16,
) -> list[str]:
    """What the model writes after each prompt: the new text only, without special tokens.

    A decoder-only model's prompts are padded on the left, an encoder's on the right; padding is
    masked, so a batch gives what its prompts give one by one, up to floating-point reordering.
    To match training give tokens (`encode_prompt`): a text is tokenised in one piece, uncut.
    Raises ValueError for a prompt without a token.
    """
    ids = [_prompt_ids(tokenizer, prompt) for prompt in prompts]
    if not all(ids):
        raise ValueError("a prompt has no token: there is nothing to continue")
    texts = [""] * len(ids)
    with evaluating(model):
        lengths = [len(row) for row in ids]
        groups = list(_groups(lengths, batch_size, _needs_equal_lengths(model)))
        for group in over(groups, "generating"):
            written = _continue(model, tokenizer, [ids[i] for i in group], decoding)
            for i, text in zip(group, written, strict=True):
                texts[i] = text
    return texts


def _groups(lengths: Sequence[int], size: int, equal: bool) -> Iterator[list[int]]:
    """Indices of each batch: of like lengths, or of equal ones."""
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    parts = [list(part) for _, part in groupby(order, lambda i: lengths[i] if equal else 0)]
    for part in parts:
        for start in range(0, len(part), size):
            yield part[start : start + size]


def _needs_equal_lengths(model: Any) -> bool:
    """Whether padding would move a prefix out of a sliding attention window."""
    config = virtual_config(model)
    if config is None or not _is_prefix(config):
        return False
    return getattr(model.config, "sliding_window", None) is not None


def _prompt_ids(tokenizer: Any, prompt: Prompt) -> list[int]:
    return list(tokenizer(prompt).input_ids if isinstance(prompt, str) else prompt)


def _continue(
    model: Any, tokenizer: Any, prompts: list[list[int]], decoding: Decoding
) -> list[str]:
    """The text written after each of a batch of prompts."""
    two_sided = model.config.is_encoder_decoder
    device = next(model.parameters()).device
    writer, inputs = _inputs(model, prompts, decoding.num_beams, device)
    tokens = writer.generate(
        **inputs,
        pad_token_id=pad_id(tokenizer),
        eos_token_id=stop_ids(tokenizer),
        **asdict(decoding),
        **_PLAIN,
    )
    given = 1 if two_sided else inputs["input_ids"].shape[1]  # a decoder begins with one token
    new = tokens[:, given:]
    return [text.strip() for text in tokenizer.batch_decode(new, skip_special_tokens=True)]


def _inputs(
    model: Any, prompts: list[list[int]], beams: int, device: torch.device
) -> tuple[Any, dict[str, Any]]:
    """The model whose `generate` writes, and what to give it.

    PEFT's own `generate` does not serve a model with virtual tokens: PEFT 0.21 looks for the cache
    under a name that transformers 5 has dropped, so that it puts the virtual tokens in again at
    each step (decoders) or not at all (prefixes of encoder-decoders); and it would put them in
    front of the padding, further from a short prompt than they were in training.
    """
    two_sided = model.config.is_encoder_decoder
    config = virtual_config(model)
    if config is None or (two_sided and not _is_prefix(config)):
        return model, _side_padded(prompts, not two_sided, device)
    if _is_prefix(config):
        return model.get_base_model(), _prefixed(model, prompts, beams, device)
    return model.get_base_model(), _prompted(model, prompts, device)


def virtual_config(model: Any) -> Any | None:
    """PEFT's configuration of a model with virtual tokens, None of any other model."""
    if "peft" not in sys.modules:  # then there is no such model
        return None
    from peft import PeftModel

    if not isinstance(model, PeftModel):
        return None
    config = model.active_peft_config
    return config if config.is_prompt_learning else None


def _is_prefix(config: Any) -> bool:
    """Whether the virtual tokens are keys and values of each layer, not embeddings."""
    from peft import PeftType

    return config.peft_type in (PeftType.PREFIX_TUNING, PeftType.CARTRIDGE)


def _prompted(model: Any, prompts: list[list[int]], device: torch.device) -> dict[str, Any]:
    """Padding, then the virtual embeddings, then the prompt's.

    The virtual tokens' ids are stand-ins: the prompt's first token, see `_side_padded`.
    """
    count = model.active_peft_config.num_virtual_tokens
    inputs = _side_padded([[row[0]] * count + row for row in prompts], True, device)
    embedded = model.word_embeddings(inputs["input_ids"])
    virtual = model.get_prompt(batch_size=len(prompts)).to(embedded.dtype)
    for row, prompt, own in zip(embedded, prompts, virtual, strict=True):
        start = len(row) - len(prompt) - count
        row[start : start + count] = own
    return {**inputs, "inputs_embeds": embedded}


def _prefixed(
    model: Any, prompts: list[list[int]], beams: int, device: torch.device
) -> dict[str, Any]:
    """A cache that holds the virtual tokens of each beam, then padding, then the prompt."""
    two_sided = model.config.is_encoder_decoder
    inputs = _side_padded(prompts, not two_sided, device)
    if not two_sided:  # ids and mask cover what is in the cache
        count = model.active_peft_config.num_virtual_tokens
        stand_in = inputs["input_ids"][:, :1].expand(-1, count)
        mask = torch.ones_like(stand_in)
        inputs["input_ids"] = torch.cat((stand_in, inputs["input_ids"]), dim=1)
        inputs["attention_mask"] = torch.cat((mask, inputs["attention_mask"]), dim=1)
    return {**inputs, _cache_name(): model.get_prompt(len(prompts) * beams)}


def _cache_name() -> str:
    """What transformers calls keys and values of earlier tokens: once `past_key_values`."""
    taken = signature(GenerationMixin.prepare_inputs_for_generation).parameters
    return "cache" if "cache" in taken else "past_key_values"


def _side_padded(
    rows: list[list[int]], left: bool, device: torch.device
) -> dict[str, torch.Tensor]:
    """`input_ids` and `attention_mask`, (B, T), padded on one side.

    Padding is masked, so any token will do; a row's own first one does not make a repetition
    penalty fall on a token that the row lacks, such as the end of sequence.
    """
    width = max(len(row) for row in rows)

    def pad(row: list[int], fill: int) -> list[int]:
        padding = [fill] * (width - len(row))
        return padding + row if left else row + padding

    return {
        "input_ids": torch.tensor([pad(row, row[0]) for row in rows], device=device),
        "attention_mask": torch.tensor([pad([1] * len(row), 0) for row in rows], device=device),
    }
