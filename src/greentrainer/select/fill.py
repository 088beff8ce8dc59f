"""Adding tensors in a given order for as long as they fit the budget."""

from collections.abc import Iterable, Sequence

from greentrainer.types import CostGraph


def fill(
    graph: CostGraph, backward_budget: float, order: Iterable[str], start: Sequence[str] = ()
) -> list[str]:
    """`start` and every further tensor of `order` that still fits, with what it takes.

    A tensor costs what it adds to the nodes of this very graph: its variants are not looked at.
    """
    chosen = list(start)
    active = graph.active_nodes(chosen)
    room = backward_budget - sum(c for c, on in zip(graph.costs, active, strict=True) if on)
    left = set(graph.affordable(backward_budget)).difference(chosen)
    for name in order:
        if name not in left:
            continue
        added = _missing(graph, active, graph.leaves[name], room)
        if added is not None:
            chosen.append(name)
            left.remove(name)
            for node in added:
                active[node] = 1
                room -= graph.costs[node]
    return chosen


def fill_any(graph: CostGraph, backward_budget: float, order: Iterable[str]) -> list[str]:
    """Every tensor of `order` that still fits when it is met, whichever variant then holds."""
    if not graph.variants:
        return fill(graph, backward_budget, order)
    chosen: list[str] = []
    for name in order:
        if graph.backward_flops([*chosen, name]) <= backward_budget:
            chosen.append(name)
    return chosen


def _missing(graph: CostGraph, active: bytearray, node: int, room: float) -> list[int] | None:
    """The inactive nodes among `node` and its ancestors; None if they cost more than `room`."""
    found, seen = [node], {node}
    for reached in found:  # grows while it is read
        room -= graph.costs[reached]
        if room < 0:
            return None
        for parent in graph.parents[reached]:
            if not active[parent] and parent not in seen:
                seen.add(parent)
                found.append(parent)
    return found
