"""The published selector (paper, section 3.3), written plainly, to compare ours with.

=======================  =======================================================================
paper                    here
=======================  =======================================================================
tensors 1..N             `Chain.names`, closest to the loss first
``t_dw[k]``              `Chain.own[k]`
``sum of t_dy``          `Chain.passing`: what tensor k adds to the passing on that those before
                         it need
``T_q``                  `bins`
``P[k, t]``              `value[k][t]`, with `taken[k][t]`: whether tensor k itself was taken
=======================  =======================================================================

    P[k, t] = max(P[k-1, t], I[k] + max over j < k of P[j, t - t_dw[k] - sum of t_dy from j to k])

where the inner maximum is over those j that P[j, .] takes.  As in the published code, costs are
rounded down to whole bins.  The recursion keeps one selection for each (k, t), the most valuable.
What it costs to go on from there depends on how deep that selection reaches, which is lost where
skipping k was worth more; so even with exact costs it may miss the optimum.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from greentrainer.types import CostGraph, ancestors


@dataclass(frozen=True)
class Chain:
    """A cost graph seen as the paper sees a model: a row of tensors.  FLOPs, per tensor."""

    names: tuple[str, ...]
    own: list[int]
    passing: list[int]


def chain_of(graph: CostGraph) -> Chain:
    """Nodes that lead to one tensor alone are its own cost, all others are passed in this order."""
    below = [0] * len(graph.costs)
    paths = {name: _above(graph, leaf) for name, leaf in graph.leaves.items()}
    for path in paths.values():
        for node in path:
            below[node] += 1
    own, passing, met = [], [], set[int]()
    for path in paths.values():
        own.append(sum(graph.costs[node] for node in path if below[node] == 1))
        shared = {node for node in path if below[node] > 1} - met
        passing.append(sum(graph.costs[node] for node in shared))
        met |= shared
    return Chain(graph.tensors, own, passing)


def _above(graph: CostGraph, leaf: int) -> list[int]:
    return [node for node, on in enumerate(ancestors(graph.parents, [leaf])) if on]


def published(
    chain: Chain, importance: Mapping[str, float], budget: float, bins: int, released: bool = True
) -> list[str]:
    """What the recursion selects, with costs rounded down to `bins` of all cost.

    The released code sets the limit to the budget's share of the sum of the rounded costs; the
    paper (not `released`) to its share of `bins`, although rounding has left fewer in use.
    """
    total = sum(chain.own) + sum(chain.passing)
    own = [cost * bins // total for cost in chain.own]
    passing = [cost * bins // total for cost in chain.passing]
    used = sum(own) + sum(passing) if released else bins
    return recursion(chain.names, own, passing, importance, int(budget / total * used))


def recursion(
    names: Sequence[str],
    own: Sequence[int],
    passing: Sequence[int],
    importance: Mapping[str, float],
    limit: int,
) -> list[str]:
    """`P[k, t]` for t up to `limit`, and the selection behind its greatest value."""
    value = [[0.0] * (limit + 1)]
    taken = [[True] * (limit + 1)]
    origin = [[(0, 0)] * (limit + 1)]
    for k, name in enumerate(names, 1):
        if sum(passing[:k]) > limit:
            break
        value.append(value[k - 1].copy())
        taken.append([False] * (limit + 1))
        origin.append([(k - 1, t) for t in range(limit + 1)])
        for t in range(own[k - 1], limit + 1):
            left = t - own[k - 1]
            for j in range(k - 1, -1, -1):
                left -= passing[j]
                if left < 0:
                    break
                if taken[j][left] and value[j][left] + importance[name] > value[k][t]:
                    value[k][t] = value[j][left] + importance[name]
                    taken[k][t] = True
                    origin[k][t] = (j, left)
    last = value[-1]
    return _path(names, taken, origin, last.index(max(last)))  # more room may be worth less


def _path(
    names: Sequence[str],
    taken: list[list[bool]],
    origin: list[list[tuple[int, int]]],
    t: int,
) -> list[str]:
    k, chosen = len(taken) - 1, []
    while k:
        if taken[k][t]:
            chosen.append(names[k - 1])
        k, t = origin[k][t]
    return chosen
