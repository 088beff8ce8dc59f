"""Choices that read no importance, so that none is measured and none is paid for.

Controls (random tensors, the layers closest to the loss) keep within the budget.  Published methods
that fix what is trained by rule (the last layers, biases, blocks drawn by lot) know no budget.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from greentrainer.types import CostGraph, Selection


@dataclass(frozen=True)
class Blind:
    """A choice without importance.

    choose: gets the graph, the backward budget in FLOPs, and how many selections came before.
    budgeted: whether it keeps within that budget; if not, the run's `rho` is 1 and bounds nothing.
    """

    choose: Callable[[CostGraph, float, int], Selection]
    budgeted: bool = True


def fixed(graph: CostGraph, names: Iterable[str]) -> Selection:
    """Exactly the tensors of these names, in the graph's order, whatever they cost.

    Raises ValueError if the graph has none of them.
    """
    wanted = set(names)
    chosen = tuple(name for name in graph.tensors if name in wanted)
    if not chosen:
        raise ValueError("the method's rule chooses no tensor of this model: take another method")
    cost = graph.backward_flops(chosen)
    return Selection(chosen, 0.0, cost, cost)


def by_rule(names_at: Callable[[int], Iterable[str]]) -> Blind:
    """Whatever the rule names for each selection, counted from 0; it knows no budget."""
    return Blind(lambda graph, _budget, turn: fixed(graph, names_at(turn)), budgeted=False)
