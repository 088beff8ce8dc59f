"""How good a model is: held-out loss per token, and ROUGE of what it writes.

Everything here leaves the model as it found it: each module's training flag (dropout that was
switched off stays off), gradients, and the tokenizer.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from rouge_score.rouge_scorer import RougeScorer
from torch import nn
from torch.nn import functional

from greentrainer.tasks.encode import IGNORED, pad_id

Prompt = str | Sequence[int]
"""A text, or the tokens that `encode_prompt` made of an example."""

ROUGE = ("rouge1", "rouge2", "rougeL")

_GREEDY = {
    "do_sample": False,
    "num_beams": 1,
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "min_length": 0,
}
"""Undoes what a model's own generation config may ask for."""


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; each module's own training flag comes back after."""
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, flag in flags:
            module.training = flag


def loss_per_token(model: Any, batches: Iterable[dict[str, torch.Tensor]]) -> float:
    """Mean negative log-likelihood of the labelled tokens, in nats, in evaluation mode.

    Summed over tokens and divided once, in float64: the same however the examples are batched.
    Raises ValueError if no token has a label.
    """
    total, count = 0.0, 0
    device = next(model.parameters()).device
    with evaluating(model):
        for batch in batches:
            losses = _token_losses(model, {k: v.to(device) for k, v in batch.items()})
            total += losses.double().sum().item()
            count += losses.numel()
    if count == 0:
        raise ValueError("no token has a label: there is nothing to measure the loss on")
    return total / count


def _token_losses(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Negative log-likelihood of each labelled token, (labelled tokens,)."""
    labels = batch["labels"]
    if model.config.is_encoder_decoder:
        logits = model(**batch).logits  # the labels make the decoder's inputs
    else:
        inputs = {key: value for key, value in batch.items() if key != "labels"}
        logits, labels = model(**inputs).logits[:, :-1], labels[:, 1:]
    labelled = labels != IGNORED
    return functional.cross_entropy(logits[labelled].float(), labels[labelled], reduction="none")


def rouge(
    predictions: Sequence[str], references: Sequence[str | Sequence[str]]
) -> dict[str, float]:
    """Mean F1 x 100 of ROUGE-1, -2 and -L, with Porter stemming (Google's `rouge_score`).

    A reference may be several texts: the best one counts, for each of the three by itself.
    Raises ValueError for different numbers of predictions and references, or none.
    """
    if len(predictions) != len(references) or not predictions:
        raise ValueError(f"{len(predictions)} predictions for {len(references)} references")
    scorer = RougeScorer(list(ROUGE), use_stemmer=True)
    scores = [
        scorer.score_multi([targets] if isinstance(targets, str) else list(targets), prediction)
        for prediction, targets in zip(predictions, references, strict=True)
    ]
    return {key: 100 * sum(s[key].fmeasure for s in scores) / len(scores) for key in ROUGE}


def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    max_new_tokens: int = 64,
    batch_size: int = 16,
) -> list[str]:
    """What the model writes after each prompt, greedily; the new text only, without specials.

    A decoder-only model's prompts are padded on the left, an encoder's on the right; padding is
    masked, so a batch gives what its prompts give one by one, up to floating-point reordering.
    To match training give tokens (`encode_prompt`): a text is tokenised in one piece, uncut.
    """
    ids = [_prompt_ids(tokenizer, prompt) for prompt in prompts]
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    texts = [""] * len(ids)
    with evaluating(model):
        for start in range(0, len(order), batch_size):
            group = order[start : start + batch_size]
            written = _continue(model, tokenizer, [ids[i] for i in group], max_new_tokens)
            for i, text in zip(group, written, strict=True):
                texts[i] = text
    return texts


def _prompt_ids(tokenizer: Any, prompt: Prompt) -> list[int]:
    return list(tokenizer(prompt).input_ids if isinstance(prompt, str) else prompt)


def _continue(
    model: Any, tokenizer: Any, prompts: list[list[int]], max_new_tokens: int
) -> list[str]:
    """The text written after each of a batch of prompts."""
    two_sided = model.config.is_encoder_decoder
    inputs = _side_padded(prompts, pad_id(tokenizer), left=not two_sided)
    device = next(model.parameters()).device
    tokens = model.generate(
        **{key: value.to(device) for key, value in inputs.items()},
        max_new_tokens=max_new_tokens,
        pad_token_id=pad_id(tokenizer),
        eos_token_id=tokenizer.eos_token_id,
        **_GREEDY,
    )
    new = tokens if two_sided else tokens[:, inputs["input_ids"].shape[1] :]
    return [text.strip() for text in tokenizer.batch_decode(new, skip_special_tokens=True)]


def _side_padded(rows: list[list[int]], pad_id: int, left: bool) -> dict[str, torch.Tensor]:
    """`input_ids` and `attention_mask`, (B, T), padded on one side."""
    width = max(len(row) for row in rows)

    def pad(row: list[int], fill: int) -> list[int]:
        padding = [fill] * (width - len(row))
        return padding + row if left else row + padding

    return {
        "input_ids": torch.tensor([pad(row, pad_id) for row in rows]),
        "attention_mask": torch.tensor([pad([1] * len(row), 0) for row in rows]),
    }
