"""What a pass asked of its batch's values, as a program that asks another batch: `Questions`."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch.utils._pytree import keystr, tree_flatten_with_path, tree_leaves, tree_map

from greentrainer.types import Batch

LEAST = 6
"""Numbers in a program that are no batch's sizes."""


@dataclass(frozen=True)
class Slot:
    """Stands for a tensor in a program."""

    number: int


@dataclass(frozen=True)
class Size:
    """Stands for a number in a program that is made of a batch's sizes.

    factors: of a product, each a size's number, how many times it is taken, and what is subtracted.
    """

    factors: tuple[tuple[int, int, int], ...]

    def at(self, sizes: Sequence[int]) -> int:
        """The number for these sizes."""
        return math.prod(times * sizes[number] - less for number, times, less in self.factors)


@dataclass(frozen=True)
class Made:
    """One operation of a program; outs: numbers of its results, by their place in it."""

    func: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    outs: tuple[int, ...]


@dataclass(frozen=True)
class Questions:
    """What a pass asked of its batch's values.

    inputs: path of each tensor of the batch that was looked at, and its number in the program.
    asked: numbers of what was asked for: its value, where it has one element, or its shape.
    answers: as they were for the batch that was traced.
    """

    inputs: tuple[tuple[str, int], ...] = ()
    program: tuple[Made, ...] = ()
    asked: tuple[int, ...] = ()
    answers: tuple[Any, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.inputs)

    @property
    def paths(self) -> frozenset[str]:
        """What of a batch the answers depend on."""
        return frozenset(path for path, _ in self.inputs)

    def sized(self, values: Sequence[int], times: Sequence[int]) -> "Questions":
        """The same for batches of all sizes, where these were so many times so much.

        values: primes; a number that is one of them, one less, or a product is taken to be made of
        it.
        """
        pairs = zip(values, times, strict=True)
        single = {
            n * value - less: ((number, n, less),)
            for number, (value, most) in enumerate(pairs)
            for n in {1, most}
            for less in (0, 1)
        }
        double = {a * b: (*x, *y) for a, x in single.items() for b, y in single.items() if a != b}
        known = {number: Size(factors) for number, factors in {**double, **single}.items()}

        def put(leaf: Any) -> Any:
            return known.get(leaf, leaf) if type(leaf) is int and leaf > LEAST else leaf

        program = [replace(m, args=tree_map(put, m.args), kwargs=tree_map(put, m.kwargs))
                   for m in self.program]  # fmt: skip
        return replace(self, program=tuple(program))

    def alike(
        self,
        batch: Batch,
        sizes: Sequence[int],
        host: Callable[[torch.Tensor], torch.Tensor] = torch.Tensor.cpu,
    ) -> bool:
        """Whether a batch takes the same branches, as far as can be told by the answers.

        What is true must be, and what is none; other numbers may be others.
        """
        answers = self.of(batch, host, sizes)
        return answers is not None and _branches(answers) == _branches(self.answers)

    def of(
        self,
        batch: Batch,
        host: Callable[[torch.Tensor], torch.Tensor] = torch.Tensor.cpu,
        sizes: Sequence[int] = (),
    ) -> tuple[Any, ...] | None:
        """The answers for another batch of the same shapes.

        host: fetches a tensor there.  sizes: of the batch, where the questions are for all.

        None where the questions do not make sense for it.
        """
        try:
            given = named_tensors(batch)
            held = {number: host(given[path]).clone() for path, number in self.inputs}
            for made in self.program:
                args, kwargs = tree_map(partial(_filled, held, sizes), (made.args, made.kwargs))
                results = tree_leaves(made.func(*args, **kwargs))
                held.update(zip(made.outs, results, strict=True))
            return tuple(_answer(held[number]) for number in self.asked)
        except (RuntimeError, IndexError, KeyError, ValueError):
            return None


def _filled(held: Mapping[int, torch.Tensor], sizes: Sequence[int], leaf: Any) -> Any:
    if isinstance(leaf, Slot):
        return held[leaf.number]
    return leaf.at(sizes) if isinstance(leaf, Size) else leaf


def _branches(answers: tuple[Any, ...]) -> tuple[bool, ...]:
    return tuple(all(one) if isinstance(one, tuple) else bool(one) for one in answers)


def _answer(tensor: torch.Tensor) -> Any:
    """The value of one element; of more the shape, which is what is asked then."""
    return tensor.item() if tensor.dim() == 0 else tuple(tensor.shape)


def named_tensors(batch: Batch) -> dict[str, torch.Tensor]:
    """The tensors of a batch by their paths in it."""
    found = tree_flatten_with_path(batch)[0]
    return {keystr(path): one for path, one in found if isinstance(one, torch.Tensor)}
