"""An upper bound on what any selection within a budget is worth.

The bound is Lagrangian (`bounds`): at each of several prices of a FLOP the budget is dropped and
what it would have bought is charged instead; the least of the results bounds the optimum from
above.  It is the linear relaxation's value or a little more, so a selection that falls short of it
may still be optimal.
"""

import math
from collections.abc import Mapping

from greentrainer.select.bounds import bounds_of
from greentrainer.select.knapsack import variants_of
from greentrainer.select.reduce import Problem, reduce
from greentrainer.select.states import MOST_STATES, steps_of
from greentrainer.types import CostGraph, Importance


def optimum_at_most(
    graph: CostGraph, importance: Importance, backward_budget: float
) -> float | None:
    """What the summed importance of no selection within the budget exceeds.

    None where the graph has more states than are kept, so that no bound is known.
    """
    positive = {n: float(importance[n]) for n in graph.tensors if importance.get(n, 0.0) > 0}
    limits = [_limit(variant, positive, backward_budget) for variant in variants_of(graph)]
    known = [limit for limit in limits if limit is not None]
    return max(known) if len(known) == len(limits) else None


def _limit(graph: CostGraph, positive: Mapping[str, float], budget: float) -> float | None:
    """The bound by this very graph's nodes, variants aside."""
    candidates = {name: positive[name] for name in graph.affordable(budget) if name in positive}
    paid = graph.active_nodes(())
    room = math.floor(min(budget, sum(graph.costs))) - _cost(graph, paid)
    if room < 0 or not candidates:
        return 0.0
    if _cost(graph, graph.active_nodes(candidates)) - _cost(graph, paid) <= room:
        return math.fsum(candidates.values())
    return _lagrangian(reduce(graph, candidates, paid), room)


def _lagrangian(problem: Problem, room: int) -> float | None:
    """The least bound over several prices of a FLOP, once the root is taken."""
    steps = steps_of(problem, sum(problem.profits) / max(room, 1))
    if max(len(step.live) for step in steps) >= MOST_STATES:
        return None
    bounds = bounds_of(problem, steps, room)
    after_root = bounds.after[0][int(steps[0].take[0])]
    left = room - problem.costs[0]
    return problem.profits[0] + float((left * bounds.rates + after_root).min())


def _cost(graph: CostGraph, active: bytearray) -> int:
    return sum(cost for cost, on in zip(graph.costs, active, strict=True) if on)
