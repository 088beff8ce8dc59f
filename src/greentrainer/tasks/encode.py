"""From examples to batches: tokens, labels on the completion only, padding, and the order.

A decoder-only model reads one sequence

    specials | prompt (cut at its end) | cue | completion | end of sequence
    -100 ................................... | labels .................... |

and an encoder-decoder reads `specials prompt cue specials` and is to write the completion.

Each of the three texts is tokenised by itself.  So the boundary between what is given and what is
asked falls between two tokens, the same in training and in generation, whatever the texts are; and
a cue, once learned, is always the same tokens.  The prompt gives way where the window is too small:
it is cut at its end (the head of a function or an article says most); cue and completion are whole.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from greentrainer.tasks.base import Example

IGNORED = -100
"""Label of a position that the loss does not cover (PyTorch's convention)."""

_BUCKET_BATCHES = 50


@dataclass(frozen=True)
class Encoded:
    """Tokens of one example.

    input_ids: of the whole sequence, or of the encoder.
    labels: as long as `input_ids`, `IGNORED` on all but the completion; or the decoder's.
    """

    input_ids: tuple[int, ...]
    labels: tuple[int, ...]

    @property
    def length(self) -> int:
        """Positions of its longer side: what padding goes by."""
        return max(len(self.input_ids), len(self.labels))


def encode(
    example: Example,
    tokenizer: Any,
    max_length: int,
    is_encoder_decoder: bool = False,
    row: int | None = None,
) -> Encoded:
    """Tokens and labels of `example` within a window of `max_length` tokens.

    An encoder-decoder has that window on each side.  The completion ends with the tokenizer's
    end-of-sequence token, on which there is a label too.  Raises ValueError, naming `row`, if
    completion and cue leave no room for the prompt.
    """
    completion = _completion_ids(example, tokenizer, is_encoder_decoder)
    if is_encoder_decoder:
        _check_room(max_length - len(completion), "completion", max_length, row)
        prompt = encode_prompt(example, tokenizer, max_length, True, row=row)
        return Encoded(prompt, completion)
    prompt = encode_prompt(example, tokenizer, max_length, False, len(completion), row)
    return Encoded(prompt + completion, (IGNORED,) * len(prompt) + completion)


def encode_all(
    examples: Sequence[Example], tokenizer: Any, max_length: int, is_encoder_decoder: bool = False
) -> list[Encoded]:
    """`encode` for each example; errors name rows from 1."""
    return [
        encode(example, tokenizer, max_length, is_encoder_decoder, row)
        for row, example in enumerate(examples, 1)
    ]


def encode_prompt(
    example: Example,
    tokenizer: Any,
    max_length: int,
    is_encoder_decoder: bool = False,
    reserved: int = 0,
    row: int | None = None,
) -> tuple[int, ...]:
    """What a model is given before it writes: prompt, cut to the window, and cue.

    reserved: positions of the window kept free for the completion.
    Raises ValueError, naming `row`, if the cue and `reserved` leave no room for the prompt.
    """
    before, after = _specials(tokenizer)
    cue = _ids(tokenizer, example.cue) + (after if is_encoder_decoder else ())
    room = max_length - reserved - len(before) - len(cue)
    _check_room(room - 1, "completion with its cue" if reserved else "cue", max_length, row)
    return before + _ids(tokenizer, example.prompt)[:room] + cue


def _completion_ids(example: Example, tokenizer: Any, is_encoder_decoder: bool) -> tuple[int, ...]:
    """The completion and the end of sequence; special tokens too where a decoder is trained so."""
    ids = _ids(tokenizer, example.completion)
    before, after = _specials(tokenizer) if is_encoder_decoder else ((), ())
    return before + ids + (after or (tokenizer.eos_token_id,))


def _check_room(room: int, what: str, max_length: int, row: int | None) -> None:
    if room < 0:
        place = "" if row is None else f"row {row}: "
        raise ValueError(
            f"{place}{what} is {-room} tokens too long for a window of {max_length}: "
            "raise max_length, or shorten the row"
        )


def _ids(tokenizer: Any, text: str) -> tuple[int, ...]:
    return tuple(tokenizer(text, add_special_tokens=False, verbose=False).input_ids)


def _specials(tokenizer: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Tokens that the tokenizer puts before and after a text, such as BOS and EOS."""
    bare, full = _ids(tokenizer, "a"), tuple(tokenizer("a").input_ids)
    start = next(i for i in range(len(full)) if full[i : i + len(bare)] == bare)
    return full[:start], full[start + len(bare) :]


@dataclass(frozen=True)
class Collator:
    """Makes a batch of encoded examples: `collate` with its settings.

    pad_id, multiple, max_length: see `collate`.
    """

    pad_id: int
    multiple: int = 64
    max_length: int | None = None

    def __call__(self, encoded: Sequence[Encoded]) -> dict[str, torch.Tensor]:
        """The batch."""
        return collate(encoded, self.pad_id, self.multiple, self.max_length)


def collate(
    encoded: Sequence[Encoded], pad_id: int, multiple: int = 64, max_length: int | None = None
) -> dict[str, torch.Tensor]:
    """One batch, padded on the right: int64 `input_ids`, `attention_mask` and `labels`, (B, T).

    T is the longest example's length, rounded up to a multiple of `multiple` (few different shapes
    mean few cost graphs and full tiles) but not over `max_length`, the model's window.  The labels
    of an encoder-decoder have their own T.  Padding has mask 0 and label -100.
    """
    inputs = [one.input_ids for one in encoded]
    width = _width(inputs, multiple, max_length)
    labels = [one.labels for one in encoded]
    mask = [(1,) * len(ids) for ids in inputs]
    return {
        "input_ids": _padded(inputs, width, pad_id),
        "attention_mask": _padded(mask, width, 0),
        "labels": _padded(labels, _width(labels, multiple, max_length), IGNORED),
    }


def _width(rows: Sequence[tuple[int, ...]], multiple: int, max_length: int | None) -> int:
    longest = max(len(row) for row in rows)
    rounded = -(-longest // multiple) * multiple
    return rounded if max_length is None else max(longest, min(rounded, max_length))


def _padded(rows: Sequence[tuple[int, ...]], width: int, fill: int) -> torch.Tensor:
    return torch.tensor([row + (fill,) * (width - len(row)) for row in rows], dtype=torch.int64)


def batches(
    encoded: Sequence[Encoded], batch_size: int, seed: int = 0, epoch: int = 0
) -> Iterator[list[int]]:
    """Indices of each batch of an epoch: every example once, in an order set by seed and epoch.

    Shuffled, cut into buckets of 50 batches, sorted by length within a bucket so that a batch holds
    examples of like length (little padding), and the batches shuffled.  One batch may be smaller.
    Raises ValueError for a batch size below 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}: it must be at least 1")
    chance = random.Random(f"{seed}/{epoch}")
    order = chance.sample(range(len(encoded)), len(encoded))
    size = batch_size * _BUCKET_BATCHES
    groups = []
    for start in range(0, len(order), size):
        bucket = sorted(order[start : start + size], key=lambda i: encoded[i].length)
        groups += [bucket[i : i + batch_size] for i in range(0, len(bucket), batch_size)]
    chance.shuffle(groups)
    yield from groups
