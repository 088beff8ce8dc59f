"""A cost graph made small: the same choices and the same costs, with far fewer nodes.

A `Problem` is a precedence-constrained knapsack.  Every node has a cost and a profit, and taking a
node takes its ancestors; a node stands for the tensors listed under it.  Four rewritings lose
nothing:

1. what leads only to tensors that are no candidates is left out;
2. a node that costs nothing and has one parent is taken with it, so the parent absorbs it;
3. a node without profit and with one child is taken only for that child, which absorbs it;
4. an arrow from a node that another parent implies is left out.

OPT-2.7B's 2,400 nodes become some 300: a block is a spine node or two with its matrices beside it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from greentrainer.types import CostGraph, Parents, ancestors, contract


@dataclass(frozen=True)
class Problem:
    """Nodes in topological order, node 0 the root.

    costs in FLOPs; profits are the summed `I[k]` of the tensors in `names`.
    """

    parents: list[list[int]]
    costs: list[int]
    profits: list[float]
    names: list[list[str]]


def reduce(graph: CostGraph, candidates: Mapping[str, float], paid: bytearray) -> Problem:
    """The problem of choosing among `candidates`, each with a positive importance.

    paid: one byte a node of this very graph, variants aside: 1 where it costs nothing more.
    """
    problem = _only_what_leads_to(graph, candidates, paid)
    size = len(problem.costs) + 1
    while len(problem.costs) < size:
        size = len(problem.costs)
        problem = _absorb_upwards(_absorb_downwards(problem))
    return problem


def _only_what_leads_to(
    graph: CostGraph, candidates: Mapping[str, float], paid: bytearray
) -> Problem:
    """Rewriting 1 and, where it multiplies no arrows, 2."""
    active = ancestors(graph.parents, [graph.leaves[name] for name in candidates])
    old = [node for node, on in enumerate(active) if on]
    number = {node: i for i, node in enumerate(old)}
    parents = [[number[p] for p in graph.parents[node]] for node in old]
    costs = [0 if paid[node] else graph.costs[node] for node in old]
    tensors = {name: number[graph.leaves[name]] for name in candidates}
    parents, renumbered = contract(parents, costs, {*tensors.values(), *_crossings(parents)})
    names: list[list[str]] = [[] for _ in parents]
    profits = [0.0] * len(parents)
    for name, node in tensors.items():
        names[renumbered[node]].append(name)
        profits[renumbered[node]] += candidates[name]
    return Problem(parents, [costs[node] for node in renumbered], profits, names)


def _crossings(parents: Parents) -> list[int]:
    """Nodes with several parents and several children: contracting one would multiply arrows."""
    children = [0] * len(parents)
    for above in parents:
        for parent in above:
            children[parent] += 1
    return [n for n, above in enumerate(parents) if len(above) > 1 and children[n] > 1]


def _absorb_upwards(problem: Problem) -> Problem:
    """Rewriting 2: whatever is free once its only parent is taken becomes part of it."""
    target: list[int] = []
    parents: list[list[int]] = []
    costs: list[int] = []
    profits: list[float] = []
    names: list[list[str]] = []
    for node, above in enumerate(problem.parents):
        merged = sorted({target[p] for p in above})
        if node and not problem.costs[node] and len(merged) == 1:
            target.append(merged[0])
            profits[merged[0]] += problem.profits[node]
            names[merged[0]].extend(problem.names[node])
        else:
            target.append(len(parents))
            parents.append(merged)
            costs.append(problem.costs[node])
            profits.append(problem.profits[node])
            names.append(list(problem.names[node]))
    return Problem(contract(parents, costs, range(len(parents)))[0], costs, profits, names)


def _absorb_downwards(problem: Problem) -> Problem:
    """Rewriting 3: a stepping stone to one node only becomes part of that node's cost."""
    parents = [set(above) for above in problem.parents]
    costs = list(problem.costs)
    children: list[set[int]] = [set() for _ in parents]
    for node, above in enumerate(parents):
        for parent in above:
            children[parent].add(node)
    for node in range(len(parents) - 1, 0, -1):
        if len(children[node]) != 1 or problem.names[node]:
            continue
        (child,) = children[node]
        costs[child] += costs[node]
        parents[child].remove(node)
        for parent in parents[node]:
            children[parent].remove(node)
            children[parent].add(child)
            parents[child].add(parent)
        children[node].clear()
    kept = [n for n in range(len(parents)) if not n or children[n] or problem.names[n]]
    return _restricted(problem, parents, costs, kept)


def _restricted(
    problem: Problem, parents: list[set[int]], costs: list[int], kept: list[int]
) -> Problem:
    """The problem on the nodes `kept`, with rewriting 4."""
    number = {node: i for i, node in enumerate(kept)}
    above = [sorted(number[p] for p in parents[node]) for node in kept]
    return Problem(
        contract(above, costs, range(len(kept)))[0],
        [costs[node] for node in kept],
        [problem.profits[node] for node in kept],
        [problem.names[node] for node in kept],
    )
