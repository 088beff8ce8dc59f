"""The choice between bases: on each the selector chooses tensors, and the best choice is taken.

A basis is one way to train the coming batches: with gradients through tails of some length, and
with what is kept of forward passes staying true or not.  Each has its own cost graph and its own
importance, so each is a knapsack of its own; what they share is what a batch may cost.

Where every tensor can be trained there is nothing to choose but the tail: then longer is better,
and no importance need be known.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from greentrainer.select import Blind, optimum_at_most, top_layers
from greentrainer.types import CostGraph, Importance, Selection, Tail

Selector = Callable[[CostGraph, Importance, float], Selection] | Blind


@dataclass(frozen=True)
class Basis:
    """What a choice is made on.

    graph: what it will cost.  real: what a batch costs of which no activations are known.
    among: the tensors that may be chosen; all when None.
    tail: positions of each prompt that gradient passes through; all when None.
    priced: costs are in another unit than FLOPs.
    """

    graph: CostGraph
    real: CostGraph
    among: frozenset[str] | None = None
    tail: Tail = None
    priced: bool = False

    @property
    def least(self) -> int:
        """Backward FLOPs of the cheapest tensor that may be chosen."""
        closures = self.graph.closure_flops
        return min(closures[n] for n in closures if self.among is None or n in self.among)

    @property
    def cheapest(self) -> int:
        """FLOPs of the cheapest batch on it."""
        return self.graph.forward_flops + self.least

    def allows_everything(self, allowance: float) -> bool:
        """Whether a batch of so many FLOPs may train every tensor."""
        whole = self.graph.forward_flops + self.graph.full_backward_flops
        return self.among is None and allowance >= whole


@dataclass
class Chooser:
    """Chooses by the importance at hand.

    importance: of each tensor, for each tail that it was measured for.
    current: the choice in force.  turn: how many were asked for before.
    """

    selector: Selector
    rho: float
    importance: dict[Tail, Importance] = field(default_factory=dict)
    current: Selection | None = None
    turn: int = -1

    @property
    def measures(self) -> bool:
        """Whether choices are made by importance."""
        return self.rho < 1 and not isinstance(self.selector, Blind)

    @property
    def ready(self) -> bool:
        """Whether another choice can be made at any time, without a probe."""
        if isinstance(self.selector, Blind):
            return self.selector.budgeted and self.rho < 1
        return self.rho < 1 and self.current is not None

    def best(self, bases: Sequence[Basis], allowance: float) -> Selection:
        """The choice of most importance; of equal ones the one on the first basis.

        allowance: FLOPs that a batch may cost.  Where nothing is within it, as in debt, it is the
        least that can be trained; the tensors next to the loss, where no importance is known.
        Raises ValueError if no tensor promises any gain.
        """
        return self._within(self._weighed(bases, allowance), allowance)

    def optimum_at_most(
        self, bases: Sequence[Basis], allowance: float, chosen: Selection
    ) -> float | None:
        """What no choice within the allowance is worth more than; None where no bound is known.

        Nothing is known without importance, in debt, and beyond `states.MOST_STATES`.
        """
        if not (self.measures and self.importance):
            return None
        limits = [
            self._limit(basis, allowance - basis.graph.forward_flops, chosen.importance)
            for basis in self._weighed(bases, allowance)
            if allowance >= basis.cheapest and self._promises(basis)
        ]
        known = [limit for limit in limits if limit is not None]
        return max(known) if known and len(known) == len(limits) else None

    def _limit(self, basis: Basis, budget: float, known: float) -> float | None:
        if budget >= basis.graph.full_backward_flops:
            return self._gain(basis.tail)
        return optimum_at_most(basis.graph, self._worth(basis), budget, known)

    def _weighed(self, bases: Sequence[Basis], allowance: float) -> Sequence[Basis]:
        """The bases to choose among."""
        if not self.measures:
            return bases[-1:]
        unlimited = [basis for basis in bases if basis.allows_everything(allowance)]
        weighed = [basis for basis in bases if basis.tail in self.importance]
        if unlimited and unlimited[-1] not in weighed:
            weighed.append(unlimited[-1])
        return weighed or bases

    def _within(self, bases: Sequence[Basis], allowance: float) -> Selection:
        found: list[Selection] = []
        refusal: ValueError | None = None
        for basis in bases:
            if allowance >= basis.cheapest and self._promises(basis):
                try:
                    found.append(self.selected(basis, allowance - basis.graph.forward_flops))
                except ValueError as error:
                    refusal = error
        if found:
            return max(found, key=lambda selection: selection.importance)
        if refusal is not None:
            raise refusal
        able = [basis for basis in bases if self._promises(basis)]
        cheapest = min(able, key=lambda basis: basis.cheapest)
        return self.selected(cheapest, cheapest.least)

    def selected(self, basis: Basis, budget: float) -> Selection:
        """What the selector chooses; its cost is that of the backward pass alone.

        Where costs are no FLOPs, the budget is told in those that the choice made of it.
        """
        chosen = replace(self._picked(basis, budget), tail=basis.tail)
        if basis.graph is basis.real:
            return chosen
        flops = basis.real.backward_flops(chosen.names)
        if not basis.priced:
            return replace(chosen, backward_flops=flops)
        price = max(1, basis.graph.backward_flops(chosen.names))
        return replace(chosen, backward_flops=flops, backward_budget=budget * flops / price)

    def _worth(self, basis: Basis) -> Importance:
        """The importance of what may be chosen."""
        measured: Mapping[str, float] = self.importance.get(basis.tail, {})
        if basis.among is None:
            return measured
        return {name: value for name, value in measured.items() if name in basis.among}

    def _promises(self, basis: Basis) -> bool:
        return basis.among is None or any(value > 0 for value in self._worth(basis).values())

    def _picked(self, basis: Basis, budget: float) -> Selection:
        """What the selector chooses; what is in force, if that fits and nothing promises a gain."""
        graph, importance = basis.graph, self._worth(basis)
        if isinstance(self.selector, Blind) and not self.selector.budgeted:
            return self.selector.choose(graph, budget, self.turn)
        if self.rho == 1 or budget >= graph.full_backward_flops:
            value = self._gain(basis.tail)
            return Selection(graph.tensors, value, graph.full_backward_flops, budget)
        if isinstance(self.selector, Blind):
            return self.selector.choose(graph, budget, self.turn)
        current = self.current if self.current and self.current.tail == basis.tail else None
        promising = any(importance.get(n, 0.0) > 0 for n in graph.affordable(budget))
        if current and not promising and graph.backward_flops(current.names) <= budget:
            return current
        if not self.importance:
            return top_layers(graph, budget)
        return self.selector(graph, importance, budget)

    def _gain(self, tail: Tail) -> float:
        """Importance of all tensors together: as measured, or in between what was."""
        known = {t: sum(own.values()) for t, own in self.importance.items()}
        if tail in known or not known:
            return known.get(tail, 0.0)
        shorter = [t for t in known if _shorter(t, tail)]
        longer = [t for t in known if not _shorter(t, tail)]
        if not (shorter and longer):
            return max(known.values()) if shorter else 0.0
        low, high = max(shorter, key=_length), min(longer, key=_length)
        span = _length(high) - _length(low)
        share = (_length(tail) - _length(low)) / span if math.isfinite(span) else 0.0
        return known[low] + share * (known[high] - known[low])


def _length(tail: Tail) -> float:
    return math.inf if tail is None else tail


def _shorter(one: Tail, other: Tail) -> bool:
    return _length(one) < _length(other)
