"""Pareto fronts of (cost, value), with enough memory to tell how each point came about.

A `Front` holds the points of one state that no other point beats: costs (FLOPs, int64) and values
(summed `I[k]`, float64), both strictly increasing, shape (points,) each.  Costs are true and whole,
so whatever is thinned out, no point costs more than it says.

Ties are broken the same way every time: of points equal in cost and value the first stays, in the
order of the parts that are merged (skipping before taking, then the earlier state first).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Costs = NDArray[np.int64]
Values = NDArray[np.float64]
Indices = NDArray[np.intp]


@dataclass(frozen=True)
class Trace:
    """Where the points of a front came from.

    origin: shape (points,), positions in the parts laid end to end.
    parts: earlier traces, each with the points it lent and the node then taken (-1: none).
    """

    origin: NDArray[np.int32]
    parts: tuple[tuple["Trace", int, int], ...]


@dataclass(frozen=True)
class Front:
    """Undominated points of one state."""

    cost: Costs
    value: Values
    trace: Trace

    def keep(self, index: Indices) -> "Front":
        """The points at `index` (increasing)."""
        trace = Trace(self.trace.origin[index], self.trace.parts)
        return Front(self.cost[index], self.value[index], trace)

    def last(self) -> "Front":
        """The dearest point, which is the most valuable."""
        return self.keep(np.array([len(self.cost) - 1]))


@dataclass(frozen=True)
class Part:
    """A front on its way into another state: as it is (node -1), or with `node` taken."""

    front: Front
    node: int = -1
    cost: int = 0
    value: float = 0.0


def origin() -> Front:
    """One point: nothing taken, nothing paid."""
    trace = Trace(np.zeros(1, dtype=np.int32), ())
    return Front(np.zeros(1, dtype=np.int64), np.zeros(1), trace)


def merge(parts: Sequence[Part], budget: int) -> Front:
    """The undominated points within `budget` of all `parts` together."""
    if len(parts) == 1 and parts[0].node < 0:
        return parts[0].front
    fits = [int(p.front.cost.searchsorted(budget - p.cost, side="right")) for p in parts]
    cost = np.concatenate([p.front.cost[:n] + p.cost for p, n in zip(parts, fits, strict=True)])
    value = np.concatenate([p.front.value[:n] + p.value for p, n in zip(parts, fits, strict=True)])
    index = undominated(cost, value) if len(parts) > 1 else np.arange(len(cost))
    sources = tuple((p.front.trace, n, p.node) for p, n in zip(parts, fits, strict=True))
    return Front(cost[index], value[index], Trace(index.astype(np.int32), sources))


def undominated(cost: Costs, value: Values) -> Indices:
    """Positions of the Pareto points, by rising cost.  Stable: the first of equal points stays."""
    order = cost.argsort(kind="stable")
    ranked = value[order]
    best = np.maximum.accumulate(ranked)
    order = order[np.concatenate(([True], ranked[1:] > best[:-1]))[: len(order)]]
    ascending = cost[order]
    return order[np.concatenate((ascending[1:] != ascending[:-1], [True]))[: len(order)]]


def thin(front: Front, merit: Values, cap: int) -> Front:
    """At most `cap` points: the dearest, and of each of `cap - 1` equal cost intervals the best.

    merit: shape (points,), what "best" is measured by.  There must be more than one point.
    """
    low, high = int(front.cost[0]), int(front.cost[-1])
    place = (front.cost - low).astype(np.float64) * ((cap - 1) / (high - low))
    interval = np.minimum(place.astype(np.int64), cap - 2)
    starts = _first_of_runs(interval)
    best = np.maximum.reduceat(merit, starts)
    leading = np.flatnonzero(merit == best.repeat(np.diff(starts, append=len(merit))))
    first = leading[_first_of_runs(interval[leading])]
    return front.keep(np.union1d(first, [len(merit) - 1]))


def _first_of_runs(values: NDArray[np.int64]) -> Indices:
    """Where a sorted array takes a new value."""
    return np.flatnonzero(np.concatenate(([True], values[1:] != values[:-1])))


def taken(front: Front, point: int) -> list[int]:
    """The nodes taken on the way to a point."""
    nodes = []
    trace = front.trace
    while trace.parts:
        trace, point, node = _source(trace, int(trace.origin[point]))
        if node >= 0:
            nodes.append(node)
    return nodes


def _source(trace: Trace, position: int) -> tuple[Trace, int, int]:
    """The earlier trace and the point in it at `position` in the parts, and the node taken."""
    part = 0
    while position >= trace.parts[part][1]:
        position -= trace.parts[part][1]
        part += 1
    source, _, node = trace.parts[part]
    return source, position, node
