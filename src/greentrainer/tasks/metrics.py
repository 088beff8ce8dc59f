"""How good a model is: held-out loss per token, its choices, and scores of what it writes.

Everything here leaves the model as it found it: each module's training flag (dropout that was
switched off stays off), gradients, and the tokenizer.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch.nn import functional

from greentrainer.model import Alone
from greentrainer.records import over
from greentrainer.tasks.base import Example
from greentrainer.tasks.encode import (
    IGNORED,
    Encoded,
    collate,
    encode,
    encode_prompt,
    pad_id,
    placed,
)
from greentrainer.tasks.generation import GREEDY, PAPER, Decoding, Prompt, generate, virtual_config
from greentrainer.tasks.modes import evaluating
from greentrainer.tasks.positions import limit
from greentrainer.tasks.scores import ROUGE, accuracy, exact_match, grounded, rouge, token_f1

__all__ = [
    "GREEDY",
    "PAPER",
    "ROUGE",
    "Decoding",
    "Prompt",
    "choice_accuracy",
    "evaluate_answers",
    "evaluating",
    "exact_match",
    "generate",
    "grounded",
    "loss_per_token",
    "rouge",
    "token_f1",
]

Normalisation = Literal["sum", "mean"]
ALONE = Alone()


def loss_per_token(
    model: Any, batches: Iterable[dict[str, torch.Tensor]], processes: Alone = ALONE
) -> float:
    """Mean negative log-likelihood of the labelled tokens, in nats, in evaluation mode.

    Summed over tokens and divided once, in float64: the same however the examples are batched.
    processes: that share the batches.  Raises ValueError if no token has a label.
    """

    def sums(some: Sequence[dict[str, torch.Tensor]]) -> list[tuple[float, int]]:
        found = []
        with evaluating(model):
            for batch in over(some, "evaluating"):
                losses, labelled = _token_losses(model, batch)
                found.append((losses.double().sum().item(), int(labelled.sum())))
        return found

    found = processes.shared(list(batches), sums)
    count = sum(labelled for _, labelled in found)
    if count == 0:
        raise ValueError("no token has a label: there is nothing to measure the loss on")
    return sum(total for total, _ in found) / count


def _token_losses(model: Any, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Negative log-likelihood of each label, 0 where there is none, and where there is one.

    Both (B, T), without a decoder-only model's first position, which nothing predicts.
    """
    device = next(model.parameters()).device
    batch = placed(batch, device)
    labels = batch["labels"]
    if model.config.is_encoder_decoder:
        logits = model(**batch).logits  # the labels make the decoder's inputs
    else:
        inputs = {key: value for key, value in batch.items() if key != "labels"}
        # PEFT's virtual tokens have logits too, in front of the others
        logits = model(**inputs).logits[:, -labels.shape[1] : -1]
        labels = labels[:, 1:]
    labelled = labels != IGNORED
    losses = torch.zeros(labels.shape, device=device)
    losses[labelled] = functional.cross_entropy(
        logits[labelled].float(), labels[labelled], reduction="none"
    )
    return losses, labelled


def choice_accuracy(
    model: Any,
    tokenizer: Any,
    examples: Sequence[Example],
    max_length: int,
    batch_size: int = 16,
    normalisation: Normalisation = "sum",
    processes: Alone = ALONE,
) -> float:
    """Share x 100 of examples whose completion is, of their choices, the model's likeliest.

    A choice's likelihood is that of its tokens after the prompt, encoded as in training, the end of
    sequence included: the sum of their log-probabilities, or their mean, which does not favour the
    short.  Of equal ones the first is taken.  Raises ValueError if an example has no choices, or if
    there is no example.
    """
    if not examples or not all(example.choices for example in examples):
        raise ValueError("accuracy among choices needs examples, and choices for each of them")
    two_sided = model.config.is_encoder_decoder
    encoded = [
        encode(_choosing(example, choice), tokenizer, max_length, two_sided, row)
        for row, example in enumerate(examples, 1)
        for choice in example.choices
    ]
    pad = pad_id(tokenizer)

    def weighed(some: Sequence[Encoded]) -> list[float]:
        return _log_likelihoods(model, some, pad, batch_size, normalisation)

    scores = iter(processes.shared(encoded, weighed))
    right = [_likeliest(example, scores) == example.completion for example in examples]
    return 100 * sum(right) / len(right)


def _choosing(example: Example, choice: str) -> Example:
    """The example as if `choice` were right."""
    said = example.messages and (
        *example.messages[:-1],
        replace(example.messages[-1], content=choice),
    )
    return replace(example, completion=choice, messages=said)


def _likeliest(example: Example, scores: Iterator[float]) -> str:
    """The choice with the highest of the next scores, one for each choice."""
    own = [next(scores) for _ in example.choices]
    return example.choices[own.index(max(own))]


def _log_likelihoods(
    model: Any,
    encoded: Sequence[Encoded],
    pad: int,
    batch_size: int,
    normalisation: Normalisation,
) -> list[float]:
    """Log-likelihood of the labels of each, in the order given; batches hold like lengths."""
    order = sorted(range(len(encoded)), key=lambda i: encoded[i].length)
    found = [0.0] * len(encoded)
    with evaluating(model):
        starts = range(0, len(order), batch_size)
        for start in over(starts, "weighing choices"):
            group = order[start : start + batch_size]
            batch = collate([encoded[i] for i in group], pad, multiple=1)
            losses, labelled = _token_losses(model, batch)
            totals = -losses.double().sum(dim=1)
            if normalisation == "mean":
                totals /= labelled.sum(dim=1)
            for i, total in zip(group, totals.tolist(), strict=True):
                found[i] = total
    return found


def evaluate_answers(
    model: Any,
    tokenizer: Any,
    examples: Sequence[Example],
    scores: Sequence[str],
    decoding: Decoding = GREEDY,
    *,
    max_length: int,
    generated: int | None = None,
    batch_size: int = 8,
    processes: Alone = ALONE,
) -> dict[str, Any]:
    """The scores, x 100, of a model's answers, and under `predictions` its texts.

    scores: names of `base.SCORES`: rouge gives rouge1, rouge2, rougeL and grounded; exact gives
        exact_match and f1; choice gives accuracy_likelihood and accuracy_generation.
    generated: of how many examples, from the first, an answer is written (all if None); accuracy by
        likelihood is over all.  With 0 the scores of texts, and the texts, are left out.
    max_length: window of prompt and answer together, or of an encoder.
    processes: that share the examples.

    An answer ends with its first line, unless a right answer of the example has several.  Texts
    without a prompt ask for no answer.
    """
    examples = [one for one in examples if not one.text]
    result: dict[str, Any] = {}
    if "choice" in scores:
        result["accuracy_likelihood"] = choice_accuracy(
            model, tokenizer, examples, max_length, batch_size, processes=processes
        )
    asked = examples[:generated]
    if asked:

        def written(some: Sequence[Example]) -> list[str]:
            return answers(
                model, tokenizer, some, decoding, max_length=max_length, batch_size=batch_size
            )

        texts = processes.shared(asked, written)
        result |= _text_scores(texts, asked, scores)
        result["predictions"] = texts
    return result


def answers(
    model: Any,
    tokenizer: Any,
    examples: Sequence[Example],
    decoding: Decoding,
    *,
    max_length: int,
    batch_size: int = 8,
) -> list[str]:
    """What the model writes for each example; a quarter of a small window is for the answer."""
    two_sided = model.config.is_encoder_decoder
    room = 0 if two_sided else min(decoding.max_new_tokens, max_length // 4)
    prompts = [encode_prompt(one, tokenizer, max_length, two_sided, room) for one in examples]
    decoding = _within_positions(decoding, model, 0 if two_sided else max_length - room)
    texts = generate(model, tokenizer, prompts, decoding, batch_size)
    return [_lines(text, one) for text, one in zip(texts, examples, strict=True)]


def _within_positions(decoding: Decoding, model: Any, given: int) -> Decoding:
    """As asked for, but ended where the model knows no further position."""
    most = limit(model)
    if most is None:
        return decoding
    virtual = virtual_config(model)
    left = most - given - (virtual.num_virtual_tokens if virtual else 0)
    return replace(decoding, max_new_tokens=min(decoding.max_new_tokens, left))


def _lines(text: str, example: Example) -> str:
    several = any("\n" in answer.strip() for answer in example.answers)
    return text if several else text.split("\n")[0].strip()


def _text_scores(
    texts: Sequence[str], examples: Sequence[Example], scores: Sequence[str]
) -> dict[str, float]:
    right = [example.answers for example in examples]
    result: dict[str, float] = {}
    if "rouge" in scores:
        result |= rouge(texts, right)
        result["grounded"] = grounded(texts, [example.prompt for example in examples])
    if "exact" in scores:
        result |= {"exact_match": exact_match(texts, right), "f1": token_f1(texts, right)}
    if "choice" in scores:
        result["accuracy_generation"] = accuracy(texts, right)
    return result
