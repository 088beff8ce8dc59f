"""The states of the dynamic programme: which nodes can still be taken, one decision at a time.

Nodes are decided one by one, parents before children, a small branch before a large one.  What the
past means for the future is one bit for each undecided node whose immediate dominator (the last
node on every path to it) is decided: is it still within reach?  Taking a node brings those that it
dominates within reach; skipping it puts out of reach the joins below it that were within reach.
Along a chain there is one live state; parallel branches, as of an encoder and a decoder or of
experts, add the state "this branch was not followed to its end", one for each level of nesting.

The number of states is bounded for graphs that are no such thing.  Beyond the bound, the states
with the smallest optimistic value go no further, and the promise of an optimum goes with them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush

import numpy as np
from numpy.typing import NDArray

from greentrainer.select.reduce import Problem
from greentrainer.types import dominators

MOST_STATES = 256


@dataclass(frozen=True)
class Step:
    """The decision about one node.

    take, skip: shape (states before,), the state after, or -1 where that choice does not exist.
    live: shape (states after,), whether anything can still be taken.
    """

    node: int
    take: NDArray[np.int32]
    skip: NDArray[np.int32]
    live: list[bool]


def steps_of(problem: Problem, rate: float) -> list[Step]:
    """The decisions in order.  `rate` (importance per FLOP) ranks states if there are too many."""
    tree = _Tree(problem)
    promise = _Promise(problem, tree, rate)
    slots = _Slots()
    states = {slots.open(0): 0.0}
    steps = []
    for node in tree.order:
        step, states = _decide(problem, tree, promise, slots, node, states)
        steps.append(step)
    return steps


class _Tree:
    """The dominator tree: `below[n]` are the nodes that n immediately dominates.

    order: the nodes as they are decided.
    exits: for each node the joins reachable from it that something above it dominates.
    """

    def __init__(self, problem: Problem) -> None:
        size = len(problem.parents)
        self.above = dominators(problem.parents)
        self.below: list[list[int]] = [[] for _ in range(size)]
        for node in range(1, size):
            self.below[self.above[node]].append(node)
        children = _children(problem.parents)
        self.order = _order(problem.parents, children, self._weights())
        self.exits = self._exits(children)

    def _weights(self) -> list[int]:
        weights = [1] * len(self.below)
        for node in range(len(weights) - 1, 0, -1):
            weights[self.above[node]] += weights[node]
        return weights

    def _exits(self, children: Sequence[Sequence[int]]) -> list[frozenset[int]]:
        exits: list[frozenset[int]] = [frozenset()] * len(self.below)
        for node in range(len(exits) - 1, -1, -1):
            reached: set[int] = set()
            for child in children[node]:
                reached.add(child)
                reached |= exits[child]
            exits[node] = frozenset(reached.difference(self.below[node]))
        return exits


def _children(parents: Sequence[Sequence[int]]) -> list[list[int]]:
    children: list[list[int]] = [[] for _ in parents]
    for node, above in enumerate(parents):
        for parent in above:
            children[parent].append(node)
    return children


def _order(
    parents: Sequence[Sequence[int]], children: Sequence[Sequence[int]], weights: Sequence[int]
) -> list[int]:
    """A topological order that finishes the branch with the fewest nodes first."""
    waiting = [len(above) for above in parents]
    ready = [(weights[0], 0)]
    order = []
    while ready:
        _, node = heappop(ready)
        order.append(node)
        for child in children[node]:
            waiting[child] -= 1
            if not waiting[child]:
                heappush(ready, (weights[child], child))
    return order


class _Promise:
    """What a state may still be worth at most, net of `rate` a FLOP.

    Joins are let off the branches between them and their dominator, which leaves a tree.
    """

    def __init__(self, problem: Problem, tree: _Tree, rate: float) -> None:
        self.net = [v - rate * c for v, c in zip(problem.profits, problem.costs, strict=True)]
        self.best = list(self.net)
        for node in range(len(self.best) - 1, 0, -1):
            self.best[tree.above[node]] += max(0.0, self.best[node])

    def of(self, state: int, slots: "_Slots") -> float:
        return sum(max(0.0, self.best[n]) for n, bit in slots.bits.items() if state & bit)


@dataclass
class _Slots:
    """Gives each undecided node within some state's reach a bit, and reuses it afterwards."""

    bits: dict[int, int] = field(default_factory=dict)
    free: list[int] = field(default_factory=list)

    def open(self, node: int) -> int:
        bit = heappop(self.free) if self.free else 1 << len(self.bits)
        self.bits[node] = bit
        return bit

    def close(self, node: int) -> None:
        self.free.append(self.bits.pop(node))
        heapify(self.free)


def _decide(
    problem: Problem,
    tree: _Tree,
    promise: _Promise,
    slots: _Slots,
    node: int,
    states: dict[int, float],
) -> tuple[Step, dict[int, float]]:
    """The step that decides `node`, and the states after it with their best net value so far."""
    own = slots.bits[node]
    lost = ~(own | sum(slots.bits[join] for join in tree.exits[node]))
    slots.close(node)
    won = sum([slots.open(child) for child in tree.below[node]])
    take: list[int | None] = []
    skip: list[int | None] = []
    after: dict[int, float] = {}
    for state, net in states.items():
        if state & own:
            state_taken = state & ~own | won
            take.append(state_taken)
            gain = net + promise.net[node]
            after[state_taken] = max(gain, after.get(state_taken, gain))
        else:
            take.append(None)
        if state & own and not problem.costs[node]:
            skip.append(None)
        else:
            skip.append(state & lost)
            after[state & lost] = max(net, after.get(state & lost, net))
    if len(after) > MOST_STATES:
        after = _most_promising(after, promise, slots)
    return _step(node, take, skip, list(after)), after


def _most_promising(states: dict[int, float], promise: _Promise, slots: _Slots) -> dict[int, float]:
    """The best `MOST_STATES` states by the optimistic net value of what they can become."""
    ranked = sorted(states, key=lambda state: -states[state] - promise.of(state, slots))
    return {state: states.get(state, 0.0) for state in [0, *ranked[:MOST_STATES]]}


def _step(node: int, take: list[int | None], skip: list[int | None], states: list[int]) -> Step:
    number = {state: i for i, state in enumerate(states)}

    def numbered(choices: list[int | None]) -> NDArray[np.int32]:
        """A state that was lost counts as one from which nothing more can be taken."""
        found = [-1 if s is None else number.get(s, number.get(0, -1)) for s in choices]
        return np.array(found, dtype=np.int32)

    return Step(node, numbered(take), numbered(skip), [state != 0 for state in states])
