"""Algorithms on a directed acyclic graph given as parent lists in topological order.

Node 0 is the root; `parents[n]` holds nodes smaller than `n`.  Plain integers and lists, no torch.
"""

from collections.abc import Iterable, Sequence

Parents = Sequence[Sequence[int]]


def ancestors(parents: Parents, seeds: Iterable[int]) -> bytearray:
    """Mark `seeds` and everything above them: one byte a node, 1 where reached."""
    marked = bytearray(len(parents))
    for seed in seeds:
        marked[seed] = 1
    for node in range(len(parents) - 1, -1, -1):
        if marked[node]:
            for parent in parents[node]:
                marked[parent] = 1
    return marked


def descendants(parents: Parents, seed: int) -> bytearray:
    """Mark `seed` and everything below it: one byte a node, 1 where reached."""
    marked = bytearray(len(parents))
    marked[seed] = 1
    for node in range(seed + 1, len(parents)):
        marked[node] = any(marked[parent] for parent in parents[node])
    return marked


def sole_ends(parents: Parents, ends: Iterable[int]) -> tuple[int, ...]:
    """For each node the only one of `ends` that it is above, or is; -1 if none or several are."""
    nothing, several = -2, -1
    found = [nothing] * len(parents)
    for end in ends:
        found[end] = end
    for node in range(len(parents) - 1, -1, -1):
        for parent in parents[node]:
            if found[node] != nothing:
                same = found[parent] in (nothing, found[node])
                found[parent] = found[node] if same else several
    return tuple(max(end, several) for end in found)


def dominators(parents: Parents) -> list[int]:
    """Immediate dominator of each node: the deepest other node on every path from the root.

    Cooper, Harvey and Kennedy, "A Simple, Fast Dominance Algorithm" (2001); in topological order
    one pass is enough.  The root is its own dominator.
    """
    idom: list[int] = [0] * len(parents)
    for node in range(1, len(parents)):
        above = iter(parents[node])
        common = next(above)
        for parent in above:
            common = meet(idom, common, parent)
        idom[node] = common
    return idom


def meet(idom: Sequence[int], a: int, b: int) -> int:
    """Deepest node that dominates both `a` and `b` (each counts as dominating itself)."""
    while a != b:
        if a > b:
            a = idom[a]
        else:
            b = idom[b]
    return a


def closure_costs(parents: Parents, costs: Sequence[int]) -> list[int]:
    """Cost of each node together with all its ancestors.

    A node's ancestors are those of its immediate dominator and the few nodes between the two, so
    only these are walked.
    """
    idom = dominators(parents)
    total = [costs[0]] * len(parents)
    for node in range(1, len(parents)):
        top = idom[node]
        seen, stack = {node}, [node]
        while stack:
            for parent in parents[stack.pop()]:
                if parent != top and parent not in seen:
                    seen.add(parent)
                    stack.append(parent)
        total[node] = total[top] + sum(costs[n] for n in seen)
    return total


def contract(
    parents: Parents, costs: Sequence[int], kept: Iterable[int]
) -> tuple[list[list[int]], dict[int, int]]:
    """Drop the nodes that cost nothing and are not `kept`; their children inherit their parents.

    Returns the parent lists of what is left (redundant arrows to the ancestors of another parent
    removed where a local walk shows it) and the map from old to new numbers.  The root stays.
    """
    keep = set(kept) | {0}
    number: dict[int, int] = {}
    lifted: list[tuple[int, ...]] = []
    result: list[list[int]] = []
    for node, above in enumerate(parents):
        inherited: set[int] = set()
        for parent in above:
            inherited.update((number[parent],) if parent in number else lifted[parent])
        minimal = _without_redundant(result, inherited)
        lifted.append(tuple(minimal))
        if node in keep or costs[node]:
            number[node] = len(result)
            result.append(minimal)
    return result, number


def _without_redundant(parents: Parents, nodes: set[int]) -> list[int]:
    """Those of `nodes` that are no ancestor of another one of them."""
    if len(nodes) < 2:
        return list(nodes)
    lowest = min(nodes)
    redundant: set[int] = set()
    seen: set[int] = set()
    stack = list(nodes)
    while stack:
        for parent in parents[stack.pop()]:
            if parent in nodes:
                redundant.add(parent)
            if parent > lowest and parent not in seen:
                seen.add(parent)
                stack.append(parent)
    return sorted(nodes - redundant)
