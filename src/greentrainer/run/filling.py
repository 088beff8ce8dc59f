"""Which tensors may be trained where not all fit: those worth most together within some bytes."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

TRIES = 4
"""How often a set of tensors that turns out to take more, or less, is made anew."""
CLOSE = 0.01
"""Of the limit, what may be left when no better set is looked for."""
LIKELY = 2
"""Depths that are gone into, of those whose first guess is worth most."""


@dataclass(frozen=True)
class Filling:
    """Fills `room` bytes, activations included, with tensors.

    sizes: bytes of each, in the model's order.  needed: bytes of training some or of probing them,
    whichever is more, besides activations.  kept: activations of a step that trains one.  total:
    bytes of a step that trains some, or of a probe of them, all told.
    """

    room: int
    sizes: Mapping[str, int]
    needed: Callable[[Collection[str]], int]
    kept: Callable[[str], int]
    total: Callable[[Sequence[str]], int]

    def best(self, worth: Mapping[str, float]) -> list[str]:
        """The tensors worth most together that fit, in the model's order; none where none does.

        What is trained below keeps activations of all above: so for some depths the best set from
        there up to the loss is found, and the best of these taken.
        """
        names = list(self.sizes)
        tried: list[tuple[float, list[str], int]] = []
        for deepest in self.depths:
            above = names[names.index(deepest) :]
            room = self.room - self.kept(deepest)
            first = self.filled(worth, above, room)
            tried.append((sum(worth[name] for name in first), above, room))
        likely = sorted(tried, key=lambda one: one[0])[-LIKELY:]
        found = [self._settled(worth, above, room) for _, above, room in likely]
        return max(found, key=lambda names: sum(worth[name] for name in names))

    def filled(self, worth: Mapping[str, float], names: Sequence[str], room: int) -> list[str]:
        """Of these so many as `room` bytes besides activations hold, worth most for theirs first.

        Of equals the small ones: a probe holds copies of the largest.
        """
        size = self.sizes
        chosen: set[str] = set()
        for name in sorted(names, key=lambda n: (-worth[n] / size[n], size[n])):
            if worth[name] > 0 and self.needed({*chosen, name}) <= room:
                chosen.add(name)
        return [name for name in names if name in chosen]

    @property
    def depths(self) -> list[str]:
        """The deepest tensors of some parts of the model, and the smallest beside the loss."""
        names = list(self.sizes)
        some = [names[len(names) * quarter // 4] for quarter in range(4)]
        smallest = min(reversed(names), key=self.sizes.__getitem__)
        return list(dict.fromkeys([*some, smallest]))

    def _settled(self, worth: Mapping[str, float], names: Sequence[str], room: int) -> list[str]:
        """Of these the best that fit, by what sets really take.  room: a first guess."""
        best: list[str] = []
        for _ in range(TRIES):
            chosen = self.filled(worth, names, room)
            if not chosen:
                break
            left = self.room - self.total(chosen)
            if left >= 0 and sum(worth[n] for n in chosen) > sum(worth[n] for n in best):
                best = chosen
            if 0 <= left < CLOSE * self.room:
                break
            room = self.needed(chosen) + left
        return best
