"""Foretold cost graphs as plain values, fit for JSON, and back.

A model has thousands of nodes and a handful of different costs (numbers, or polynomials in the
sizes of a batch): each is written once, and referred to by its number.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from greentrainer.cost.sizes import Foretold, Powers, Symbols, Work, terms_of
from greentrainer.types import CostGraph, Stage

Terms = tuple[tuple[Powers, int], ...]


def plain_graph(graph: CostGraph) -> dict[str, Any]:
    """A graph as plain values."""
    table: dict[Terms, int] = {}
    found = _plain(graph, table)
    costs = [[[list(powers), flops] for powers, flops in terms] for terms in table]
    return {"graph": found, "table": costs}


def graph_of(plain: Mapping[str, Any], at: Sequence[int] = ()) -> CostGraph:
    """The graph again.  at: sizes that it was traced at, where its costs depend on these.

    Raises KeyError, IndexError, TypeError or ValueError for what is none.
    """
    return _graph(plain["graph"], [_cost(written, at) for written in plain["table"]])


def plain_foretold(foretold: Foretold) -> dict[str, Any]:
    """The graph of all batches between two that were traced, as plain values."""
    symbols = foretold.symbols
    return {
        **plain_graph(foretold.graph),
        "values": list(symbols.values),
        "marks": list(symbols.marks),
        "sums": [list(pair) for pair in symbols.sums],
        "least": list(foretold.least),
        "ordered": foretold.ordered,
    }


def foretold_of(plain: Mapping[str, Any]) -> Foretold:
    """It again; raises as `graph_of` does."""
    values = tuple(plain["values"])
    symbols = Symbols(values, tuple(plain["marks"]), tuple((i, j) for i, j in plain["sums"]))
    return Foretold(graph_of(plain, values), symbols, tuple(plain["least"]), plain["ordered"])


def _plain(graph: CostGraph, table: dict[Terms, int]) -> dict[str, Any]:
    def number(cost: int) -> int:
        return table.setdefault(tuple(sorted(terms_of(cost).items())), len(table))

    return {
        "parents": [list(own) for own in graph.parents],
        "costs": [number(cost) for cost in graph.costs],
        "leaves": dict(graph.leaves),
        "sizes": dict(graph.sizes),
        "forward_flops": number(graph.forward_flops),
        "plain_flops": graph.plain_flops,
        "stages": [asdict(stage) | {"flops": number(stage.flops)} for stage in graph.stages],
        "modules": {path: list(nodes) for path, nodes in graph.modules.items()},
        "uncounted_ops": list(graph.uncounted_ops),
        "forced": list(graph.forced),
        "variants": [[sorted(mask), _plain(one, table)] for mask, one in graph.variants],
        "notes": list(graph.notes),
    }


def _graph(plain: Mapping[str, Any], costs: Sequence[int]) -> CostGraph:
    return CostGraph(
        parents=tuple(tuple(own) for own in plain["parents"]),
        costs=tuple(costs[number] for number in plain["costs"]),
        leaves=dict(plain["leaves"]),
        sizes=dict(plain["sizes"]),
        forward_flops=costs[plain["forward_flops"]],
        plain_flops=plain["plain_flops"],
        stages=tuple(
            Stage(stage["path"], costs[stage["flops"]], stage["node"]) for stage in plain["stages"]
        ),
        modules={path: tuple(nodes) for path, nodes in plain["modules"].items()},
        uncounted_ops=tuple(plain["uncounted_ops"]),
        forced=tuple(plain["forced"]),
        variants=tuple((frozenset(mask), _graph(one, costs)) for mask, one in plain["variants"]),
        notes=tuple(plain["notes"]),
    )


def _cost(written: Sequence[Any], at: Sequence[int]) -> int:
    terms = {tuple(powers): int(flops) for powers, flops in written}
    if terms.keys() <= {()}:
        return terms.get((), 0)
    return Work.of(Work.of(0, terms).at(at), terms)
