"""What was trained when, from the records of a row."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Mask:
    """The tensors in force for some batches of a run: numbers into its `tensors`."""

    start: int
    end: int
    tensors: frozenset[int]

    @property
    def batches(self) -> int:
        """How long it was in force."""
        return self.end - self.start


def masks(record: Record) -> list[Mask]:
    """The masks of a run in their order, those in force for no batch left out."""
    events = record["selections"]
    ends = [event["batch"] for event in events[1:]] + [record["bill"]["batches"]]
    found = [
        Mask(event["batch"], end, frozenset(event["tensors"]))
        for event, end in zip(events, ends, strict=True)
    ]
    return [mask for mask in found if mask.batches > 0]


def frequency(records: Sequence[Record], count: int) -> list[float]:
    """Share of the batches of all these runs for which each of `count` tensors was trained."""
    trained = [0] * count
    for record in records:
        for mask in masks(record):
            for tensor in mask.tensors:
                trained[tensor] += mask.batches
    total = sum(record["bill"]["batches"] for record in records)
    return [batches / total for batches in trained]


def grid(
    tensors: Sequence[Mapping[str, Any]], values: Sequence[float]
) -> tuple[list[str], list[list[float | None]]]:
    """Kinds of tensor, and for each its value in each block; None where a block has none.

    Kinds stand in the order of the forward pass.  A tensor outside of the blocks stands in a row
    of its own, its value in the first column.
    """
    blocks = 1 + max((t["block"] for t in tensors if t["block"] is not None), default=0)
    kinds: dict[str, list[float | None]] = {}
    for tensor, value in reversed(list(zip(tensors, values, strict=True))):
        row = kinds.setdefault(tensor["kind"], [None] * blocks)
        row[tensor["block"] or 0] = value
    return list(kinds), list(kinds.values())
