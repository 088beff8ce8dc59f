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
from operator import attrgetter
from pathlib import Path
from typing import overload

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
        self._add(_line(example))

    def _add(self, line: bytes) -> None:
        self._lines.add(line)
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
        self._get = examples.at if isinstance(examples, Examples) else examples.__getitem__

    def __len__(self) -> int:
        return len(self.places)

    def at(self, place: int) -> Example:
        """As of all."""
        return self._get(self.places[place])


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
            made._add(line)
    if len(made):
        made[-1]  # or it was cut short
    return made


_FIELDS = tuple(name for name in Example.__slots__ if name != "messages")


def _line(example: Example) -> bytes:
    said = [(m.role, m.content, m.trained, m.more) for m in example.messages]
    return _spell((*_values(example), said)).encode() + b"\n"


_values = attrgetter(*_FIELDS)
_spell = json.JSONEncoder().encode
_parse = json.JSONDecoder().decode


def _example(line: bytes) -> Example:
    *values, said = _parse(line.decode())
    told = dict(zip(_FIELDS, values, strict=True))
    told["references"], told["choices"] = tuple(told["references"]), tuple(told["choices"])
    told["messages"] = tuple(Message(*one) for one in said) if said else ()
    return Example(**told)
