"""Many examples in little memory: on the disk, eight bytes of memory each.

`Stored` holds them, `Chosen` and `Chained` are some of others and several behind one another.  All
are sequences, as lists are, and make an example anew each time they are asked for it.
"""

import json
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any, overload

from greentrainer.records import Spill
from greentrainer.tasks.base import Example, Message


class Examples(Sequence[Example]):
    """Examples that are made when they are asked for; the same as any sequence of equal ones."""

    def at(self, place: int) -> Example:
        """The example at a place that there is."""
        raise NotImplementedError

    @overload
    def __getitem__(self, place: int) -> Example: ...

    @overload
    def __getitem__(self, place: slice) -> Sequence[Example]: ...

    def __getitem__(self, place: int | slice) -> Example | Sequence[Example]:
        """One of them, or several."""
        if isinstance(place, slice):
            return Chosen(self, range(*place.indices(len(self))))
        i = place + len(self) if place < 0 else place
        if not 0 <= i < len(self):
            raise IndexError(place)
        return self.at(i)

    def __iter__(self) -> Iterator[Example]:
        return map(self.at, range(len(self)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or len(self) != len(other):
            return False
        return all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]


class Stored(Examples):
    """Examples on the disk, in the order in which they were added."""

    def __init__(self, examples: Iterable[Example] = ()) -> None:
        self._lines, self._ends = Spill(), array("q", [0])
        for one in examples:
            self.add(one)

    def add(self, example: Example) -> None:
        """Put one behind the others."""
        self._lines.add(_line(example))
        self._ends.append(self._lines.size)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def at(self, place: int) -> Example:
        """As of all."""
        return _example(self._lines.read(self._ends[place], self._ends[place + 1]))


class Chosen(Examples):
    """Of other examples those at some places, in their order; a place may come more than once."""

    def __init__(self, examples: Sequence[Example], places: Sequence[int]) -> None:
        self.examples = examples
        self.places = places if isinstance(places, range) else array("q", places)

    def __len__(self) -> int:
        return len(self.places)

    def at(self, place: int) -> Example:
        """As of all."""
        return self.examples[self.places[place]]


class Chained(Examples):
    """Several sequences of examples, one behind the other."""

    def __init__(self, parts: Iterable[Sequence[Example]]) -> None:
        self.parts = tuple(parts)

    @cached_property
    def _ends(self) -> list[int]:
        return list(accumulate(map(len, self.parts)))

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def at(self, place: int) -> Example:
        """As of all."""
        part = bisect_right(self._ends, place)
        return self.parts[part][place - (self._ends[part - 1] if part else 0)]


def write_examples(examples: Iterable[Example], path: Path) -> None:
    """Write examples into a file, one a line."""
    with path.open("wb") as file:
        file.writelines(map(_line, examples))


def read_examples(path: Path) -> Stored:
    """What `write_examples` wrote.  Raises OSError, ValueError, KeyError or TypeError."""
    made = Stored()
    with path.open("rb") as file:
        for line in file:
            made.add(_example(line))
    return made


_FIELDS = tuple(name for name in Example.__slots__ if name != "messages")
_SAID = Message.__slots__


def _line(example: Example) -> bytes:
    values: list[Any] = [getattr(example, name) for name in _FIELDS]
    said = [[getattr(message, name) for name in _SAID] for message in example.messages]
    return json.dumps([*values, said], ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"


def _example(line: bytes) -> Example:
    *values, said = json.loads(line.decode("utf-8", "surrogatepass"))
    told = dict(zip(_FIELDS, values, strict=True))
    for name in ("references", "choices"):
        told[name] = tuple(told[name])
    messages = tuple(Message(**dict(zip(_SAID, one, strict=True))) for one in said)
    return Example(**told, messages=messages)
