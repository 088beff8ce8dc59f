"""Notices that a weight was changed which is taken to be frozen.

A change in place raises the tensor's version, and a tensor in the place of another is another one.
What goes around both (`weight.data.add_(1)`) changes the bits: their sum over a stretch of each
tensor is compared at every look, another stretch each time, and the sum over all at each selection.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

STRETCH = 4096
"""Elements of each tensor that are added up at every look."""


@dataclass
class Mark:
    """What a tensor was like when it was first watched.  totals: of the bits of each stretch."""

    tensor: torch.Tensor
    version: int
    address: int
    totals: torch.Tensor


class Watch:
    """Watches tensors by name."""

    def __init__(self) -> None:
        self._marks: dict[str, Mark] = {}
        self._turn = 0

    def follow(self, tensors: Mapping[str, torch.Tensor]) -> bool:
        """Watch these from now on; whether those among them watched before are unchanged."""
        before = {name: self._marks[name] for name in tensors if name in self._marks}
        same = _unmoved(before, tensors) and all(
            torch.equal(_totals(mark.tensor), mark.totals) for mark in before.values()
        )
        kept = self._marks if same else {}
        self._marks = {name: kept.get(name) or _mark(t) for name, t in tensors.items()}
        return same

    def unchanged(self, tensors: Mapping[str, torch.Tensor]) -> bool:
        """Whether all are what they were, as far as a quick look shows; if not, watch them anew.

        tensors: what has these names now.
        """
        self._turn += 1
        same = tensors.keys() == self._marks.keys() and _unmoved(self._marks, tensors)
        if same and self._same_stretch(list(self._marks.values())):
            return True
        self._marks = {name: _mark(tensor) for name, tensor in tensors.items()}
        return False

    def _same_stretch(self, marks: list[Mark]) -> bool:
        now, then = [], []
        for mark in marks:
            if len(mark.totals):
                number = self._turn % len(mark.totals)
                bits = _bits(mark.tensor)
                now.append(bits[number * STRETCH : (number + 1) * STRETCH].sum(dtype=torch.int64))
                then.append(mark.totals[number])
        return not now or torch.equal(torch.stack(now), torch.stack(then))


def _unmoved(marks: Mapping[str, Mark], tensors: Mapping[str, torch.Tensor]) -> bool:
    return all(
        tensors[name] is mark.tensor
        and (mark.tensor._version, mark.tensor.data_ptr()) == (mark.version, mark.address)
        for name, mark in marks.items()
    )


def _mark(tensor: torch.Tensor) -> Mark:
    return Mark(tensor, tensor._version, tensor.data_ptr(), _totals(tensor))


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor's elements, each read as a whole number."""
    kinds = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return tensor.detach().reshape(-1).view(kinds[tensor.element_size()])


def _totals(tensor: torch.Tensor) -> torch.Tensor:
    bits = _bits(tensor)
    whole = len(bits) // STRETCH * STRETCH
    sums = bits[:whole].view(-1, STRETCH).sum(1, dtype=torch.int64)
    rest = bits[whole:]
    return torch.cat([sums, rest.sum(dtype=torch.int64)[None]]) if len(rest) else sums
