"""Short examples of one batch share rows and do not see each other: where each lies in them.

A batch of examples of many lengths is mostly padding.  Laid one behind the other into as few rows
as fit, the same examples take fewer positions.  `position_ids` begin anew at each of them; no
`attention_mask` is given, and transformers then lets no position see another example's.  The first
label of each is ignored, as that of a row's first position is anyhow.  What fills up a row is like
one more example, without labels.  So loss and gradient are those of the unpacked batch but for the
order of sums.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Protocol

import torch

from greentrainer.types import IGNORED, rounded

MORE = 0.25
"""By how much a row may be longer than the longest example must be padded to: attention takes the
square of it."""


class Tokens(Protocol):
    """An encoded example of a decoder: as many labels as tokens."""

    @property
    def input_ids(self) -> tuple[int, ...]:
        """Of the whole sequence."""
        ...

    @property
    def labels(self) -> tuple[int, ...]:
        """`IGNORED` where the loss does not look."""
        ...


@dataclass(frozen=True)
class Layout:
    """Which examples lie in which row, by their numbers, and how long rows are."""

    rows: tuple[tuple[int, ...], ...]
    width: int

    @property
    def positions(self) -> int:
        """Of all rows, padding included."""
        return len(self.rows) * self.width


def width_of(longest: int, multiple: int | None, max_length: int | None) -> int:
    """What rows are padded to; see `encode.collate`."""
    width = rounded(longest, multiple)
    return width if max_length is None else max(longest, min(width, max_length))


def layout(
    lengths: Sequence[int], multiple: int | None = None, max_length: int | None = None
) -> Layout:
    """The rows of fewest positions, the shortest of these.  lengths: of examples, in tokens.

    multiple, max_length: as of `encode.collate`.
    """
    found = []
    for width in _widths(max(lengths), multiple, max_length):
        rows = fitted(lengths, width)
        fullest = max(sum(lengths[i] for i in row) for row in rows)
        found.append(Layout(rows, width_of(fullest, multiple, max_length)))
    return min(found, key=lambda one: (one.positions, one.width))


def fitted(lengths: Sequence[int], width: int) -> tuple[tuple[int, ...], ...]:
    """The longest first, each into the first row that has room (first fit, decreasing)."""
    rows: list[list[int]] = []
    left: list[int] = []
    for number in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        size = lengths[number]
        place = next((row for row, room in enumerate(left) if room >= size), len(rows))
        if place == len(rows):
            rows.append([])
            left.append(width)
        rows[place].append(number)
        left[place] -= size
    return tuple(map(tuple, rows))


def filled(encoded: Sequence[Tokens], laid: Layout, pad_id: int) -> dict[str, Any]:
    """The batch: int64 `input_ids`, `position_ids` and `labels`, (rows, width), and `use_cache`.

    With a cache transformers would not look where examples begin.
    """
    ids, places, labels = [], [], []
    for row in laid.rows:
        some = [encoded[i] for i in row]
        left = laid.width - sum(len(one.input_ids) for one in some)
        ids.append((*chain.from_iterable(one.input_ids for one in some), *(pad_id,) * left))
        sizes = (*(len(one.input_ids) for one in some), left)
        places.append(tuple(chain.from_iterable(map(range, sizes))))
        told = chain.from_iterable((IGNORED, *one.labels[1:]) for one in some)
        labels.append((*told, *(IGNORED,) * left))
    made: dict[str, Any] = {
        name: torch.tensor(rows, dtype=torch.int64)
        for name, rows in (("input_ids", ids), ("position_ids", places), ("labels", labels))
    }
    return made | {"use_cache": False}


def _widths(longest: int, multiple: int | None, max_length: int | None) -> Iterator[int]:
    least = width = width_of(longest, multiple, max_length)
    yield width
    while (more := width_of(width + 1, multiple, max_length)) <= (1 + MORE) * least:
        if max_length is not None and more > max_length:
            break
        yield (width := more)
