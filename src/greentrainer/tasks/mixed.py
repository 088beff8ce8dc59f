"""Several sources as one task: each with a weight and a limit, and no prompt on two sides."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from greentrainer.tasks.base import SCORES, Example, Task
from greentrainer.tasks.holdout import apart_from
from greentrainer.tasks.stored import Chained, Chosen


@dataclass(frozen=True)
class Part:
    """One of the sources.

    weight: how many times its training examples are seen in a pass over the mix: 2 is twice each,
        .5 a random half of them.
    limit: of its training examples, so many at random, before they are weighed.
    """

    task: Task
    weight: float = 1.0
    limit: int | None = None


@dataclass(frozen=True)
class Mixed:
    """A task out of several, the same at every call.

    Training examples whose prompt any of the sources tests on (or validates on) are left out, so
    equal prompts never stand on two sides, whichever source they are in.
    """

    parts: tuple[Part, ...]
    seed: int = 0

    @property
    def name(self) -> str:
        """The sources' names."""
        return "+".join(part.task.name for part in self.parts)

    @property
    def scores(self) -> tuple[str, ...]:
        """What all of them are judged by."""
        kinds = [set(part.task.scores) for part in self.parts]
        return tuple(name for name in SCORES if all(name in kind for kind in kinds))

    def examples(self, split: str) -> Sequence[Example]:
        """The examples of a split, source by source; those of train weighed."""
        if split == "train":
            return Chained(self._weighed)
        return Chained(self._held(part.task, split) for part in self.parts)

    def describe(self) -> str:
        """Each source, how many of its examples are seen in a pass, and what is left out."""
        lines = []
        for part, seen in zip(self.parts, self._weighed, strict=True):
            lines.append(f"{part.task.describe()}; weight {part.weight:g}: {len(seen):,} a pass")
        if self._left_out:
            lines.append(f"left out, for another source tests on them: {self._left_out:,}")
        return "\n".join(lines)

    @staticmethod
    def _held(task: Task, split: str) -> Sequence[Example]:
        try:
            return task.examples(split)
        except ValueError:
            if split != "validation":  # which a source may lack
                raise
            return []

    @cached_property
    def _keys(self) -> frozenset[str]:
        sides = ("validation", "test")
        held = (self._held(part.task, split) for part in self.parts for split in sides)
        return frozenset(one.key for examples in held for one in examples)

    @cached_property
    def _own(self) -> list[Sequence[Example]]:
        return [part.task.examples("train") for part in self.parts]

    @cached_property
    def _apart(self) -> list[Sequence[Example]]:
        return [apart_from(own, self._keys) for own in self._own]

    @cached_property
    def _left_out(self) -> int:
        return sum(map(len, self._own)) - sum(map(len, self._apart))

    @cached_property
    def _weighed(self) -> list[Sequence[Example]]:
        found: list[Sequence[Example]] = []
        for number, (part, apart) in enumerate(zip(self.parts, self._apart, strict=True)):
            chance = random.Random(f"{self.seed}/{number}")
            if part.limit is not None:
                apart = _some(apart, part.limit, chance)
            times, rest = divmod(part.weight, 1)
            some = _some(apart, round(rest * len(apart)), chance)
            found.append(Chained([*[apart] * int(times), some]))
        return found


def _some(examples: Sequence[Example], count: int, chance: random.Random) -> Sequence[Example]:
    """So many of the examples at random, in their order; all where there are no more."""
    if count >= len(examples):
        return examples
    return Chosen(examples, sorted(chance.sample(range(len(examples)), count)))
