"""The exact selector: which tensors to train within a budget of backward FLOPs.

Section 3.3 of the paper maximises the summed importance under

    T_fp + sum of t_dw over selected + sum of t_dy over all that must be passed <= rho * T_full

with a dynamic programme over tensors and costs rounded down to `T_q` bins.  On a cost graph this
is a knapsack with precedence: choosing a leaf takes all its ancestors, each paid once.

========================  ========================================================================
paper                     here
========================  ========================================================================
``I[k]``                  `Problem.profits`
``t_dw[k]``, ``t_dy[k]``  `Problem.costs`, of leaves and of inner nodes
``rho T_full - T_fp``     `backward_budget`
``P[k, t]``               one `Front` a state: all undominated (t, P), true costs and no bins
========================  ========================================================================

Five stages, a file each: `reduce` shrinks the graph, `states` lists the decisions and what must be
remembered between them, `bounds` tells what any state can still reach, `frontier` is the arithmetic
of fronts, `programme` runs it.  Here is what comes before and after them.

The result is optimal if no front outgrows the last cap and no state is lost: always on small
instances, and on models of equal blocks, whose selections have few distinct costs.  Otherwise it is
within a hair of optimal (tests/reference).  It is within budget in any case, for no cost is ever
rounded.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from greentrainer.select.fill import fill
from greentrainer.select.programme import solve
from greentrainer.select.reduce import reduce
from greentrainer.types import CostGraph, Importance, Selection


def select(graph: CostGraph, importance: Importance, backward_budget: float) -> Selection:
    """The tensors of greatest summed importance whose backward pass costs at most the budget.

    importance: I[k] by tensor name; a tensor that is absent, or not positive, is no candidate.
    backward_budget: FLOPs, as `graph.backward_budget(rho)`.

    Deterministic, and independent of the order of `importance`.  Among selections of equal
    importance the cheaper wins; after that, the one that the programme meets first.  Raises
    ValueError if no tensor fits the budget, if none that fits has a positive importance, or if an
    importance is not finite or names an unknown tensor.
    """
    _require_valid(graph, importance)
    require_feasible(graph, backward_budget)
    positive = {n: float(importance[n]) for n in graph.tensors if importance.get(n, 0.0) > 0}
    best = _Choice()
    for variant in variants_of(graph):
        best = _best_in(variant, positive, backward_budget, frozenset(), best)
    if not best.names:
        raise _nothing_found(graph, backward_budget)
    return selection(graph, importance, best.names, backward_budget)


def selection(
    graph: CostGraph, importance: Importance, names: Iterable[str], backward_budget: float
) -> Selection:
    """`names` as a `Selection`: in the graph's order, with value and cost."""
    chosen = set(names)
    ordered = tuple(name for name in graph.tensors if name in chosen)
    value = math.fsum(importance.get(name, 0.0) for name in ordered)
    flops = graph.backward_flops(ordered)
    assert flops <= backward_budget
    return Selection(ordered, value, flops, backward_budget)


def require_feasible(graph: CostGraph, backward_budget: float) -> None:
    """Raise ValueError if the budget buys no tensor in any variant."""
    if not graph.affordable(backward_budget):
        raise infeasible(graph, backward_budget)


def infeasible(graph: CostGraph, backward_budget: float) -> ValueError:
    """The error for a budget that buys no tensor: it names the smallest rho that buys one."""
    rho = math.ceil(graph.smallest_rho() * 1e4) / 1e4
    return ValueError(
        f"a backward budget of {backward_budget:.4g} FLOPs is too small for any tensor: "
        f"the smallest feasible rho is {rho:.4f}"
    )


def _nothing_found(graph: CostGraph, backward_budget: float) -> ValueError:
    fitting = sum(flops <= backward_budget for flops in graph.closure_flops.values())
    if not fitting:
        return infeasible(graph, backward_budget)
    return ValueError(
        f"none of the {fitting} affordable tensors has a positive importance: "
        "raise rho or measure importance on more batches"
    )


def _require_valid(graph: CostGraph, importance: Importance) -> None:
    for name, value in importance.items():
        if name not in graph.leaves:
            raise ValueError(f"importance names a tensor {name!r} that is not in the cost graph")
        if not math.isfinite(value):
            raise ValueError(f"the importance of tensor {name!r} is {value}: it must be finite")


def variants_of(graph: CostGraph) -> Iterator[CostGraph]:
    """The graph and the variants of it and of them, each once."""
    found = [graph]
    for known in found:  # grows while it is read
        yield known
        for _, variant in known.variants:
            if not any(variant is other for other in found):
                found.append(variant)


@dataclass(frozen=True)
class _Choice:
    """names: tensors, in no order.  value: their summed importance.  flops: what they cost."""

    names: frozenset[str] = frozenset()
    value: float = 0.0
    flops: int = 0

    def beats(self, other: "_Choice") -> bool:
        return (self.value, -self.flops) > (other.value, -other.flops)


def _best_in(
    graph: CostGraph,
    positive: Mapping[str, float],
    budget: float,
    required: frozenset[str],
    best: _Choice,
) -> _Choice:
    """`best`, or a better choice that holds `required` and for which this very graph holds.

    It holds if something is trained of each set that has a variant without it.  Where the best
    choice does not see to that by itself, each member of the set is required in turn.
    """
    choice = _unrestricted(graph, positive, budget, required)
    if choice is None or not choice.beats(best):
        return best
    missed = next((mask for mask, _ in graph.variants if mask.isdisjoint(choice.names)), None)
    if missed is None:
        return choice
    for name in sorted(missed.intersection(positive)):
        best = _best_in(graph, positive, budget, required | {name}, best)
    return best


def _unrestricted(
    graph: CostGraph, positive: Mapping[str, float], budget: float, required: frozenset[str]
) -> _Choice | None:
    """The best choice that holds `required`, by this graph's nodes; None if there is none."""
    paid = graph.active_nodes(required)
    room = math.floor(min(budget, sum(graph.costs))) - _cost(graph, paid)
    candidates = {
        name: positive[name]
        for name in graph.affordable(budget)
        if name in positive and name not in required
    }
    if room < 0 or not (candidates or required):
        return None
    names = [*required, *_within(graph, candidates, room, paid)]
    order = sorted(candidates, key=lambda name: -candidates[name])
    chosen = frozenset(fill(graph, budget, order, names))
    value = math.fsum(positive[name] for name in chosen)
    return _Choice(chosen, value, _cost(graph, graph.active_nodes(chosen)))


def _within(
    graph: CostGraph, candidates: Mapping[str, float], room: int, paid: bytearray
) -> list[str]:
    """The best of `candidates` for at most `room` FLOPs beyond what is paid."""
    active = graph.active_nodes(candidates)
    nodes = zip(graph.costs, active, paid, strict=True)
    if sum(cost for cost, on, free in nodes if on and not free) <= room:
        return list(candidates)
    problem = reduce(graph, candidates, paid)
    return [name for node in solve(problem, room) for name in problem.names[node]]


def _cost(graph: CostGraph, active: bytearray) -> int:
    return sum(cost for cost, on in zip(graph.costs, active, strict=True) if on)
