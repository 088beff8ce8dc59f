"""The cost graph of a shape between shapes that were traced, without tracing it.

The FLOPs of a matrix operation are a product of its dimensions, and every dimension is linear in
the sizes of the batch: so each node's cost, as the graph keeps its form, is a polynomial in these
sizes, of degree 1 in the number of rows and 2 in each length (attention).  From as many graphs as
there are monomials follows, in exact rational arithmetic, that of any other shape.  Work that no
size has a part in is rare, so a polynomial without a constant is tried first: where there is one,
the check below fails.

A model may branch on a size (a sliding window, a kernel for long sequences).  So a graph is
foretold only where each size lies between those of traced graphs, all of them have one form, and
the polynomial through some of them foretells one more of them exactly.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import product

from greentrainer.types import CostGraph

Sizes = tuple[int, ...]
"""The dimensions of all tensors of a batch, in a fixed order."""

MOST_KNOWN = 24
"""Graphs that are looked at: the nearest ones."""


def interpolated(
    known: Mapping[Sizes, CostGraph], sizes: Sizes, rows: frozenset[int]
) -> CostGraph | None:
    """The graph for `sizes`, or None if those known do not tell it.

    known: graphs of batches of the same structure.  rows: positions in `sizes` of first dimensions.
    """
    ones = [size == 1 for size in sizes]  # such a dimension is broadcast: another form of graph
    alike = [other for other in known if [size == 1 for size in other] == ones]
    near = sorted(alike, key=lambda o: sum(abs(a - b) for a, b in zip(o, sizes, strict=True)))
    varying, points = _varying([sizes, *near[:MOST_KNOWN]])
    target, points = points[0], points[1:]
    graphs = [known[sizes] for sizes in near[:MOST_KNOWN]]
    degrees = [1 if rows & group else 2 for group in varying]
    tries = (_foretold(graphs, points, target, Powers(degrees, least)) for least in (1, 0))
    return next((graph for graph in tries if graph is not None), None)


@dataclass(frozen=True)
class Powers:
    """A polynomial's monomials.  degrees: in each size.  least: of the lowest."""

    degrees: Sequence[int]
    least: int

    def at(self, point: Sizes) -> list[Fraction]:
        """Products of powers, each up to its degree and of at most three factors in all."""
        found = []
        for powers in product(*(range(degree + 1) for degree in self.degrees)):
            if self.least <= sum(powers) <= 3:
                value = 1
                for size, power in zip(point, powers, strict=True):
                    value *= size**power
                found.append(Fraction(value))
        return found


def _foretold(
    known: Sequence[CostGraph], points: Sequence[Sizes], target: Sizes, powers: Powers
) -> CostGraph | None:
    found = _independent(points, powers)
    if found is None:
        return None
    basis, check = found
    axes = zip(*(points[i] for i in (*basis, check)), strict=True)
    if any(not min(axis) <= at <= max(axis) for axis, at in zip(axes, target, strict=True)):
        return None
    graphs, proof = [known[i] for i in basis], known[check]
    if any(form_of(graph) != form_of(proof) for graph in graphs):
        return None
    if _combined(graphs, _weights(points, basis, points[check], powers)) != proof:
        return None
    return _combined(graphs, _weights(points, basis, target, powers))


def _varying(all_sizes: Sequence[Sizes]) -> tuple[list[frozenset[int]], list[Sizes]]:
    """Groups of positions that vary, always alike, and each point's size in each group."""
    groups: dict[tuple[int, ...], set[int]] = {}
    for position, axis in enumerate(zip(*all_sizes, strict=True)):
        if len(set(axis)) > 1:
            groups.setdefault(axis, set()).add(position)
    points = [tuple(axis[i] for axis in groups) for i in range(len(all_sizes))]
    return [frozenset(group) for group in groups.values()], points


def _independent(points: Sequence[Sizes], powers: Powers) -> tuple[list[int], int] | None:
    """Points that determine a polynomial, and one more to check it by; None if they are too few."""
    echelon: list[list[Fraction]] = []
    chosen, spare = [], None
    for number, point in enumerate(points):
        row = _reduced(powers.at(point), echelon)
        if any(row):
            echelon.append(row)
            chosen.append(number)
        elif spare is None:
            spare = number
    unknown = len(powers.at(points[0])) if points else 0
    return (chosen, spare) if len(chosen) == unknown and spare is not None else None


def _reduced(row: list[Fraction], echelon: Sequence[Sequence[Fraction]]) -> list[Fraction]:
    for other in echelon:
        lead = next(i for i, value in enumerate(other) if value)
        if row[lead]:
            factor = row[lead] / other[lead]
            row = [a - factor * b for a, b in zip(row, other, strict=True)]
    return row


def _weights(
    points: Sequence[Sizes], basis: Sequence[int], target: Sizes, powers: Powers
) -> list[Fraction]:
    """Weights w with sum of w[i] * monomials(points[basis[i]]) = monomials(target)."""
    columns = [powers.at(points[i]) for i in basis]
    rows = [list(row) for row in zip(*columns, powers.at(target), strict=True)]
    size = len(basis)
    for column in range(size):
        pivot = next(i for i in range(column, size) if rows[i][column])
        rows[column], rows[pivot] = rows[pivot], rows[column]
        rows[column] = [value / rows[column][column] for value in rows[column]]
        for i in range(size):
            if i != column and rows[i][column]:
                factor = rows[i][column]
                rows[i] = [a - factor * b for a, b in zip(rows[i], rows[column], strict=True)]
    return [row[-1] for row in rows]


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


def _combined(graphs: Sequence[CostGraph], weights: Sequence[Fraction]) -> CostGraph | None:
    """A graph whose every cost is the weighted sum; None if one is not a whole number."""
    costs = [_whole(values, weights) for values in zip(*(g.costs for g in graphs), strict=True)]
    forward = _whole([graph.forward_flops for graph in graphs], weights)
    stage_flops = [
        _whole([stage.flops for stage in alike], weights)
        for alike in zip(*(graph.stages for graph in graphs), strict=True)
    ]
    pairs = zip(*(graph.variants for graph in graphs), strict=True)
    variants = [(pair[0][0], _combined([one for _, one in pair], weights)) for pair in pairs]
    unknown = [forward, *costs, *stage_flops, *(variant for _, variant in variants)]
    if any(figure is None for figure in unknown):
        return None
    stages = [
        replace(stage, flops=flops)  # type: ignore[arg-type]
        for stage, flops in zip(graphs[0].stages, stage_flops, strict=True)
    ]
    return replace(
        graphs[0],
        costs=tuple(costs),  # type: ignore[arg-type]
        forward_flops=forward,  # type: ignore[arg-type]
        stages=tuple(stages),
        variants=tuple(variants),  # type: ignore[arg-type]
    )


def _whole(values: Sequence[int], weights: Sequence[Fraction]) -> int | None:
    if len(set(values)) == 1:
        return values[0]  # equal at all of them: a constant, if the check agrees
    total = sum((w * v for w, v in zip(weights, values, strict=True)), Fraction(0))
    return int(total) if total.denominator == 1 and total >= 0 else None
