"""An upper bound on what any selection within a budget is worth.

Where the dynamic programme finds a proof, the bound is the optimum itself.  Elsewhere it is
Lagrangian (`bounds`): at each of several prices of a FLOP the budget is dropped and what it would
have bought is charged instead; the least of the results is no less than the optimum.  Of a graph
with variants it is the greatest of theirs, each as if it held whatever is chosen.  A selection that
falls short of the bound may still be optimal.
"""

import math
from collections.abc import Mapping

from greentrainer.select.knapsack import variants_of
from greentrainer.select.programme import at_most
from greentrainer.select.reduce import reduce
from greentrainer.types import CostGraph, Importance


def optimum_at_most(
    graph: CostGraph, importance: Importance, backward_budget: float, known: float = 0.0
) -> float | None:
    """What the summed importance of no selection within the budget exceeds.

    known: what a selection is worth that can be had; a better bound is found sooner with it.
    None where the graph has more states than are kept, so that no bound is known.
    """
    positive = {n: float(importance[n]) for n in graph.tensors if importance.get(n, 0.0) > 0}
    limits = [_limit(variant, positive, backward_budget, known) for variant in variants_of(graph)]
    bounds = [limit for limit in limits if limit is not None]
    return max(bounds) if len(bounds) == len(limits) else None


def _limit(
    graph: CostGraph, positive: Mapping[str, float], budget: float, known: float
) -> float | None:
    """The bound by this very graph's nodes, variants aside."""
    candidates = {name: positive[name] for name in graph.affordable(budget) if name in positive}
    paid = graph.active_nodes(())
    room = math.floor(min(budget, sum(graph.costs))) - _cost(graph, paid)
    if room < 0 or not candidates:
        return known
    if _cost(graph, graph.active_nodes(candidates)) - _cost(graph, paid) <= room:
        return math.fsum(candidates.values())
    return at_most(reduce(graph, candidates, paid), room, known)


def _cost(graph: CostGraph, active: bytearray) -> int:
    return sum(cost for cost, on in zip(graph.costs, active, strict=True) if on)
