"""The ways in which a run keeps within its memory, in the order in which they are tried.

What changes nothing about a step comes first, then what changes what it learns, last what makes it
cost more FLOPs.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal, Protocol

from greentrainer.forward import LabelledHead, SplitForward
from greentrainer.types import Tail

Updates = Literal["step", "backward"]

TAILS: tuple[Tail, ...] = (64, 16, 4, 0)


@dataclass(frozen=True)
class Form:
    """How a step is made.

    tail: positions of prompts that gradient passes through; None, as it was asked for.  rows: of a
    batch at a time, their gradients added; all when None.  recompute: activations are made again in
    the backward pass.
    """

    updates: Updates = "step"
    tail: Tail = None
    rows: int | None = None
    recompute: bool = False

    @property
    def as_asked(self) -> bool:
        """Whether nothing was changed."""
        return (self.updates, self.tail, self.rows, self.recompute) == ("step", None, None, False)


@dataclass(frozen=True, kw_only=True)
class Way(Form):
    """How a run keeps within its limit.

    limit: bytes, None where none was given and memory ran out.  held, told: of them before training
    and at its peak.  names: what may be trained, None for all.  evaluated: rows at a time of
    evaluations during training, None where there are none.  adapters: rank of those that are
    trained in place of the model's own tensors.
    """

    limit: int | None
    held: int
    told: int
    names: tuple[str, ...] | None = None
    evaluated: int | None = None
    adapters: int | None = None


@dataclass(frozen=True)
class Room:
    """What may be changed to make room.  rows: of a batch."""

    updates: tuple[Updates, ...]
    rows: int
    cuts: bool
    recomputes: bool

    def families(self) -> Iterator[list[Form]]:
        """The forms; within a family none takes more than the ones before, but for `updates`."""
        for tail in (None, *(TAILS if self.cuts else ())):
            yield list(self._family(tail, False))
        if self.recomputes:
            yield list(self._family(None, True))

    def _family(self, tail: Tail, recompute: bool) -> Iterator[Form]:
        for updates in self.updates:
            yield Form(updates, tail, None, recompute)
        if "step" in self.updates:
            for rows in range(self.rows - 1, 0, -1):
                if self.rows % rows == 0:
                    yield Form("step", tail, rows, recompute)


class Shortened(Protocol):
    """What of a pass may be left out: `ForwardSavings`, or what a plan has in its place."""

    @property
    def split(self) -> SplitForward | None:
        """Cuts batches in two."""

    @property
    def head(self) -> LabelledHead | None:
        """Works on labelled positions only."""

    def at(self, tail: Tail) -> AbstractContextManager[None]:
        """In here gradient passes through so many positions of each prompt."""
