"""The cost graph of batches of any size, from one trace.

The FLOPs of a matrix operation are a product of its dimensions, and a dimension is a size of the
batch (its rows, a length), the sum of two, one less (a position that predicts nothing is left out),
or a number of the model's own.  So one batch is traced
whose sizes are primes that divide nothing of the model's: factoring an operation's FLOPs then says
which sizes are in them, and how often.  Every cost of the graph becomes a polynomial in the sizes
(`Work`), and holds for a batch of any.

A model may branch on a size (a sliding window, a kernel for long sequences).  So a second, very
small batch is traced, and must have the graph that the first foretells; then what lies between the
two is taken to be foretold too, and nothing beyond.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count, pairwise

from greentrainer.types import CostGraph

Powers = tuple[int, ...]
"""Of each size in a product."""

SMALLEST = 2
"""Of lengths and rows in the small batch: a single one is often another case."""
LESS = -1
"""In place of a size's number: one less than the other."""
ROOM = (4.0, 1.1)
"""How much larger than wanted the lengths are that are traced; if that fails, a little."""


class Work(int):
    """FLOPs at the sizes traced, and the polynomial in the sizes that they come from."""

    terms: Mapping[Powers, int]

    @staticmethod
    def of(value: int, terms: Mapping[Powers, int]) -> "Work":
        """FLOPs with their polynomial."""
        work = Work(value)
        work.terms = terms
        return work

    def __add__(self, other: int) -> "Work":
        terms = dict(self.terms)
        for powers, flops in terms_of(other).items():
            terms[powers] = terms.get(powers, 0) + flops
        return Work.of(int(self) + int(other), terms)

    __radd__ = __add__

    def __sub__(self, other: int) -> "Work":
        return self + -other

    def __neg__(self) -> "Work":
        return self * -1

    def __mul__(self, factor: int) -> "Work":
        return Work.of(int(self) * factor, {p: flops * factor for p, flops in self.terms.items()})

    __rmul__ = __mul__

    def at(self, sizes: Sequence[int]) -> int:
        """FLOPs at other sizes."""
        total = 0
        for powers, flops in self.terms.items():
            for size, power in zip(sizes, powers, strict=False):
                flops *= size**power
            total += flops
        return total


def terms_of(work: int) -> Mapping[Powers, int]:
    """The polynomial of FLOPs; a constant for a plain number."""
    if isinstance(work, Work):
        return work.terms
    return {(): int(work)} if work else {}


@dataclass(frozen=True)
class Symbols:
    """Sizes that can be told apart in a product.

    values: of the sizes, and after them of sums of two.  sums: which sizes these are of; `LESS` in
        place of the second stands for -1.
    marks: for each value a prime that divides it and nothing else.
    """

    values: tuple[int, ...]
    marks: tuple[int, ...]
    sums: tuple[tuple[int, int], ...] = ()

    def factored(self, flops: int) -> int:
        """FLOPs of one operation as `Work`."""
        rest, powers = int(flops), []
        if not rest:
            return 0
        for value, mark in zip(self.values, self.marks, strict=True):
            power = 0
            while rest % mark == 0 and rest % value == 0:
                rest, power = rest // value, power + 1
            powers.append(power)
        return Work.of(int(flops), {tuple(powers): rest})

    def with_sums(self, sizes: Sequence[int]) -> tuple[int, ...]:
        """Sizes, and after them the sums."""
        return (*sizes, *(_sum(sizes, pair) for pair in self.sums))


def symbols(
    least: Sequence[int], avoided: set[int], sums: Sequence[tuple[int, int]] = ()
) -> Symbols:
    """Sizes from `least` upwards whose marks divide none of the numbers to be avoided."""
    values: list[int] = []
    marks: list[int] = []

    def fits(mark: int) -> bool:
        return mark not in marks and all(number % mark for number in avoided)

    for position, start in enumerate(least):
        pairs = [(i, j) for i, j in sums if max(i, j) == position]
        for value in _primes(start):
            trial = [*values, value]
            extra = [_mark(_sum(trial, pair)) for pair in pairs]
            new = [value, *extra]
            if all(fits(mark) for mark in new) and len(set(new)) == len(new) and min(new) > 5:
                values.append(value)
                marks.append(value)
                break
    for pair in sums:
        values.append(_sum(values, pair))
        marks.append(_mark(values[-1]))
    return Symbols(tuple(values), tuple(marks), tuple(sums))


def _sum(sizes: Sequence[int], pair: tuple[int, int]) -> int:
    first, second = pair
    return sizes[first] + (-1 if second == LESS else sizes[second])


def _primes(start: int) -> Iterator[int]:
    return (n for n in count(max(start, 7)) if _mark(n) == n)


def _mark(number: int) -> int:
    """The largest prime that divides a number above 1."""
    largest, divisor = 1, 2
    while divisor * divisor <= number:
        while number % divisor == 0:
            number, largest = number // divisor, divisor
        divisor += 1
    return max(largest, number)


def mapped(graph: CostGraph, change: Callable[[int], int]) -> CostGraph:
    """The graph with every figure of its costs changed."""
    return replace(
        graph,
        costs=tuple(change(cost) for cost in graph.costs),
        forward_flops=change(graph.forward_flops),
        stages=tuple(replace(stage, flops=change(stage.flops)) for stage in graph.stages),
        variants=tuple((mask, mapped(one, change)) for mask, one in graph.variants),
    )


@dataclass(frozen=True)
class Foretold:
    """The graph of all batches between two that were traced.

    graph: its costs are `Work`.  symbols: sizes it was traced at.  least: those of the small batch.
    ordered: a loss may put together what is of several lengths, so that the longest counts.
    """

    graph: CostGraph
    symbols: Symbols
    least: tuple[int, ...]
    ordered: bool = True

    def covers(self, sizes: Sequence[int]) -> bool:
        """Whether these sizes lie between those traced, and none is longer that was shorter."""
        most = self.symbols.values
        between = all(a <= size <= b for a, size, b in zip(self.least, sizes, most, strict=False))
        return between and self.in_order(sizes)

    def in_order(self, sizes: Sequence[int]) -> bool:
        """Whether lengths come in the order of those traced, where that matters."""
        if not self.ordered:
            return True
        lengths = [i for i, other in self.symbols.sums if other == LESS]
        ordered = sorted(lengths, key=self.symbols.values.__getitem__)
        return all(sizes[a] <= sizes[b] for a, b in pairwise(ordered))

    def at(self, sizes: Sequence[int]) -> CostGraph:
        """The graph of a batch of these sizes."""
        every = self.symbols.with_sums(sizes)
        known: dict[tuple[tuple[Powers, int], ...], int] = {}

        def told(work: int) -> int:
            if not isinstance(work, Work):
                return int(work)
            key = tuple(work.terms.items())
            if key not in known:
                known[key] = work.at(every)
            return known[key]

        return mapped(self.graph, told)


def form_of(graph: CostGraph) -> CostGraph:
    """The graph without its costs."""
    variants = tuple((mask, form_of(variant)) for mask, variant in graph.variants)
    stages = tuple(replace(stage, flops=0) for stage in graph.stages)
    return replace(graph, costs=(), forward_flops=0, stages=stages, variants=variants)


def added(graph: CostGraph, other: CostGraph, times: int) -> CostGraph:
    """A graph with every FLOP of another one of its form added to it, so many times."""
    stages = [
        replace(s, flops=s.flops + times * o.flops)
        for s, o in zip(graph.stages, other.stages, strict=True)
    ]
    variants = [
        (mask, added(variant, more, times))
        for (mask, variant), (_, more) in zip(graph.variants, other.variants, strict=True)
    ]
    return replace(
        graph,
        costs=tuple(c + times * o for c, o in zip(graph.costs, other.costs, strict=True)),
        forward_flops=graph.forward_flops + times * other.forward_flops,
        stages=tuple(stages),
        variants=tuple(variants),
    )
