"""From examples to batches: tokens, labels on the completion only, padding, and the order.

A decoder-only model reads one sequence

    specials | prompt (cut at its end) | cue | completion | end of sequence
    -100 ................................... | labels .................... |

and an encoder-decoder reads `specials prompt cue specials` and is to write the completion.  A chat
stands in place of prompt and cue, with labels on all that the assistant says (see `segments`).  A
text without a prompt is labelled whole.

Each of the three texts is tokenised by itself.  So the boundary between what is given and what is
asked falls between two tokens, the same in training and in generation, whatever the texts are; and
a cue, once learned, is always the same tokens.  The prompt gives way where the window is too small:
it is cut at its end (the head of a function or an article says most); cue and completion are whole.
"""

import random
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, chain, islice
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch

from greentrainer.records import Spill, over
from greentrainer.tasks import packing, segments
from greentrainer.tasks.base import Example
from greentrainer.tasks.segments import Parts, Segment, Told
from greentrainer.types import IGNORED as IGNORED

_BUCKET_BATCHES = 50
AT_ONCE = 1000
"""Examples whose texts a tokenizer is given together: one by one takes it twice as long."""


@dataclass(frozen=True, slots=True)
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
    end-of-sequence token, on which there is a label too, unless `example.ends` is false.  Of a text
    without a prompt it is the beginning.  Raises ValueError, naming `row`, if completion and cue
    leave no room for the prompt, or if the tokenizer has no chat template that writes the example's
    messages.
    """
    if example.text:
        ids = _whole(example, tokenizer, is_encoder_decoder, row)[:max_length]
        return Encoded(ids, ids)
    parts = _parts(example, tokenizer, is_encoder_decoder, row)
    if is_encoder_decoder:
        _check_room(len(parts.asked) - max_length, "completion", max_length, row, example)
        return Encoded(_ids(_given(example, parts, max_length, 0, row)), parts.asked)
    given = _given(example, parts, max_length, len(parts.asked), row)
    labels = [s.ids if s.trained else (IGNORED,) * len(s.ids) for s in given]
    return Encoded(_ids(given) + parts.asked, (*chain(*labels), *parts.asked))


def encode_all(
    examples: Sequence[Example], tokenizer: Any, max_length: int, is_encoder_decoder: bool = False
) -> list[Encoded]:
    """`encode` for each example, and windows full of those that are texts; errors name rows from 1.

    Texts follow one another, an end of sequence after each, and are cut where a window is full.
    """
    return list(each(examples, tokenizer, max_length, is_encoder_decoder))


def each(
    examples: Sequence[Example], tokenizer: Any, max_length: int, is_encoder_decoder: bool = False
) -> Iterator[Encoded]:
    """The same one by one; windows of texts come last."""
    stream = bytearray()
    for start in over(range(0, len(examples), AT_ONCE), "reading examples"):
        some = examples[start : start + AT_ONCE]
        rows, texts = encode_some(some, tokenizer, max_length, is_encoder_decoder, start + 1)
        yield from rows
        stream += texts.tobytes()
    yield from windows(stream, max_length)


def encode_some(
    examples: Sequence[Example],
    tokenizer: Any,
    max_length: int,
    is_encoder_decoder: bool,
    first: int,
) -> "tuple[list[Encoded], array[int]]":
    """`encode` for each that is no text, and the tokens of those that are, one after the other.

    first: the number of the first of them, for errors.
    """
    texts = (text for one in examples for text in (one.prompt, one.cue, one.completion))
    quick = Told(tokenizer, texts)
    rows, stream = [], array("i")
    for row, example in enumerate(examples, first):
        if example.text:
            stream.extend(_whole(example, quick, is_encoder_decoder, row))
        else:
            rows.append(encode(example, quick, max_length, is_encoder_decoder, row))
    return rows, stream


def windows(stream: bytearray, max_length: int) -> Iterator[Encoded]:
    """Windows full of the tokens of texts (int32)."""
    size = array("i").itemsize * max_length
    for start in range(0, len(stream), size):
        ids = tuple(array("i", bytes(stream[start : start + size])))
        if len(ids) > 1:
            yield Encoded(ids, ids)


@dataclass(frozen=True, slots=True)
class Block:
    """Encoded examples one behind the other, as bytes (int32), and how long they are.

    texts: tokens of texts, which fill windows with those of other blocks.
    """

    values: tuple[bytes, bytes]
    lengths: "tuple[array[int], array[int]]"
    texts: bytes = b""

    @classmethod
    def of(cls, rows: Sequence[Encoded], texts: "array[int] | None" = None) -> "Block":
        """Of these, and the tokens of texts."""
        sides = [[row.input_ids for row in rows], [row.labels for row in rows]]
        ids, labels = (array("i", chain.from_iterable(side)).tobytes() for side in sides)
        first, second = (array("q", map(len, side)) for side in sides)
        return cls((ids, labels), (first, second), texts.tobytes() if texts else b"")


class EncodedRows(Sequence[Encoded]):
    """Encoded examples on the disk, sixteen bytes of memory each."""

    def __init__(self, rows: Iterable[Encoded] = ()) -> None:
        self._values: tuple[Any, Any] = Spill(), Spill()
        self._ends: tuple[Any, Any] = array("q", [0]), array("q", [0])
        for row in rows:
            self.add(Block.of([row]))

    def add(self, block: Block) -> None:
        """Put those of a block behind the others."""
        for spill, ends, values, lengths in zip(
            self._values, self._ends, block.values, block.lengths, strict=True
        ):
            spill.add(values)
            ends.extend(islice(accumulate(lengths, initial=ends[-1]), 1, None))

    def __len__(self) -> int:
        return len(self._ends[0]) - 1

    @overload
    def __getitem__(self, place: int) -> Encoded: ...

    @overload
    def __getitem__(self, place: slice) -> list[Encoded]: ...

    def __getitem__(self, place: int | slice) -> Encoded | list[Encoded]:
        """One of them, or several."""
        if isinstance(place, slice):
            return [self[i] for i in range(*place.indices(len(self)))]
        i = place + len(self) if place < 0 else place
        if not 0 <= i < len(self):
            raise IndexError(place)
        both = zip(self._values, self._ends, strict=True)
        ids, labels = (_numbers(v, int(e[i]), int(e[i + 1])) for v, e in both)
        return Encoded(ids, labels)

    def length(self, i: int) -> int:
        """As of the example with this number, which is not made for it."""
        return max(int(ends[i + 1]) - int(ends[i]) for ends in self._ends)

    def save(self, folder: Path) -> None:
        """Write them into a folder, as files of numbers."""
        for name, values, ends in zip(_FILES[:2], self._values, self._ends, strict=True):
            count = int(ends[-1])
            header = {"descr": _INT32, "fortran_order": False, "shape": (count,)}
            with (folder / name).open("wb") as file:
                np.lib.format.write_array_header_1_0(file, header)
                for start in range(0, _SIZE * count, _PIECE):
                    file.write(_bytes(values, start, min(start + _PIECE, _SIZE * count)))
        for name, ends in zip(_FILES[2:], self._ends, strict=True):
            np.save(folder / name, np.asarray(ends), allow_pickle=False)

    @classmethod
    def saved(cls, folder: Path) -> "EncodedRows":
        """Those in a folder, read when they are asked for.  Raises OSError or ValueError."""
        made = cls()
        ids, labels = (np.load(folder / n, mmap_mode="r", allow_pickle=False) for n in _FILES[:2])
        ends = (np.load(folder / n, allow_pickle=False) for n in _FILES[2:])
        first, second = (array("q", one.tobytes()) for one in ends)
        made._values, made._ends = (ids, labels), (first, second)
        return made


def _numbers(values: Any, start: int, end: int) -> tuple[int, ...]:
    """Of a file without a name, or of an array."""
    return tuple(array("i", _bytes(values, _SIZE * start, _SIZE * end)))


def _bytes(values: Any, start: int, end: int) -> bytes:
    if isinstance(values, Spill):
        return values.read(start, end)
    return bytes(values[start // _SIZE : end // _SIZE].tobytes())


_SIZE = array("i").itemsize
_INT32 = np.dtype(np.int32).str
_PIECE = 2**20
_FILES = ("ids.npy", "labels.npy", "ids_ends.npy", "labels_ends.npy")


def _whole(
    example: Example, tokenizer: Any, is_encoder_decoder: bool, row: int | None
) -> tuple[int, ...]:
    """All tokens of a text, with those that the tokenizer puts before one, and its end."""
    if is_encoder_decoder:
        raise ValueError(
            f"{_place(row, example)}a text without a prompt is for models that go on writing: "
            "give prompt and completion to an encoder-decoder"
        )
    before, _ = segments.specials(tokenizer)
    return (*before, *segments.ids_of(tokenizer, example.completion), tokenizer.eos_token_id)


def encode_prompt(
    example: Example,
    tokenizer: Any,
    max_length: int,
    is_encoder_decoder: bool = False,
    reserved: int = 0,
    row: int | None = None,
) -> tuple[int, ...]:
    """What a model is given before it writes: prompt, cut to the window, and cue; or a chat so far.

    reserved: positions of the window kept free for the completion.
    Raises ValueError, naming `row`, if the cue and `reserved` leave no room for the prompt.
    """
    parts = _parts(example, tokenizer, is_encoder_decoder, row)
    return _ids(_given(example, parts, max_length, reserved, row))


def pad_id(tokenizer: Any) -> int:
    """What to pad with: the padding token, or else the end of sequence (padding is masked).

    Raises ValueError for a tokenizer that has neither.
    """
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    raise ValueError("the tokenizer has no padding and no end-of-sequence token: set its eos_token")


def _parts(example: Example, tokenizer: Any, is_encoder_decoder: bool, row: int | None) -> Parts:
    try:
        return segments.parts(example, tokenizer, is_encoder_decoder)
    except ValueError as error:
        raise ValueError(f"{_place(row, example)}{error}") from error


def _given(
    example: Example, parts: Parts, max_length: int, reserved: int, row: int | None
) -> list[Segment]:
    """What stands before the completion, cut to the window less `reserved`."""
    given, over = segments.fitted(parts.given, max_length - reserved)
    fixed = "chat without what may be cut" if example.messages else "cue"
    what = "completion with its cue" if reserved and not example.messages else fixed
    _check_room(over, what, max_length, row, example)
    return given


def _check_room(over: int, what: str, max_length: int, row: int | None, example: Example) -> None:
    if over > 0:
        raise ValueError(
            f"{_place(row, example)}{what} is {over} tokens too long for a window of {max_length}: "
            "raise max_length, or shorten the row"
        )


def _place(row: int | None, example: Example | None = None) -> str:
    """Where an example came from, for the beginning of an error."""
    if example is not None and example.where:
        return f"{example.where}: "
    return "" if row is None else f"row {row}: "


def _ids(given: Sequence[Segment]) -> tuple[int, ...]:
    return tuple(chain.from_iterable(segment.ids for segment in given))


@dataclass(frozen=True)
class Collator:
    """Makes a batch of encoded examples: `collate` with its settings.

    pad_id, multiple, max_length: see `collate`.  packs: several of a decoder's may share a row
    (`packing.filled`).
    """

    pad_id: int
    multiple: int | None = None
    max_length: int | None = None
    packs: bool = False

    def __call__(self, encoded: Sequence[Encoded]) -> dict[str, Any]:
        """The batch."""
        if self.packs:
            return packing.filled(
                encoded, self.layout([one.length for one in encoded]), self.pad_id
            )
        return collate(encoded, self.pad_id, self.multiple, self.max_length)

    def layout(self, lengths: Sequence[int]) -> packing.Layout:
        """Where examples of such lengths lie, packed."""
        return packing.layout(lengths, self.multiple, self.max_length)

    def widths(self, encoded: Sequence[Encoded]) -> tuple[int, int]:
        """How wide its batch of these is, each in a row of its own: ids, and labels."""
        sides = ([one.input_ids for one in encoded], [one.labels for one in encoded])
        given, asked = (_width(rows, self.multiple, self.max_length) for rows in sides)
        return given, asked

    def shape(self, encoded: Sequence[Encoded]) -> tuple[int, int, int]:
        """How many rows its batch of these has, and how wide ids and labels are."""
        if not self.packs:
            return (len(encoded), *self.widths(encoded))
        laid = self.layout([one.length for one in encoded])
        return len(laid.rows), laid.width, laid.width


def collate(
    encoded: Sequence[Encoded],
    pad_id: int,
    multiple: int | None = None,
    max_length: int | None = None,
) -> dict[str, torch.Tensor]:
    """One batch, padded on the right: int64 `input_ids`, `attention_mask` and `labels`, (B, T).

    T is the longest example's length, rounded up to a multiple of `multiple` (by less than an
    eighth when None: padding costs as much as tokens do) but not over `max_length`, the model's
    window.  The labels of an encoder-decoder have their own T.  Padding has mask 0 and label -100.
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


def placed(batch: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """The batch on a device."""
    return {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}


def _width(rows: Sequence[tuple[int, ...]], multiple: int | None, max_length: int | None) -> int:
    return packing.width_of(max(len(row) for row in rows), multiple, max_length)


def _padded(rows: Sequence[tuple[int, ...]], width: int, fill: int) -> torch.Tensor:
    return torch.tensor([row + (fill,) * (width - len(row)) for row in rows], dtype=torch.int64)


def length_at(encoded: Sequence[Encoded], i: int) -> int:
    """As of the example with this number."""
    return encoded.length(i) if isinstance(encoded, EncodedRows) else encoded[i].length


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
    length = partial(length_at, encoded)
    groups = []
    for start in range(0, len(order), size):
        bucket = sorted(order[start : start + size], key=length)
        groups += [bucket[i : i + batch_size] for i in range(0, len(bucket), batch_size)]
    chance.shuffle(groups)
    yield from groups
