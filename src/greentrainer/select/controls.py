"""Selections to compare the importance of section 3.2 with, at the same backward budget.

`random_selection` and `top_layers` need no measurement.  The others give each tensor a score and
let `select` do the rest, so that they differ from the method in the score alone:

==================  =========================  ==================================================
name                score of tensor k          source
==================  =========================  ==================================================
gradient_magnitude  norm of g                  GreenTrainer, section 4.3
weight_magnitude    norm of w                  GreenTrainer, section 4.3
fisher              sum of g^2                 trace of the empirical Fisher information
snip                sum of abs(g * w)          Lee, Ajanthan and Torr, "SNIP", ICLR 2019
==================  =========================  ==================================================
"""

from collections.abc import Callable, Mapping, Sequence
from random import Random

from greentrainer.select.fill import fill_any
from greentrainer.select.knapsack import infeasible, require_feasible, select, selection
from greentrainer.types import CostGraph, Importance, Selection, TensorStatistics

Score = Callable[[TensorStatistics], float]

CONTROLS: dict[str, Score] = {
    "gradient_magnitude": lambda tensor: tensor.gradient_norm,
    "weight_magnitude": lambda tensor: tensor.weight_norm,
    "fisher": lambda tensor: tensor.squared_gradient,
    "snip": lambda tensor: tensor.gradient_weight,
}


def scores(control: str, statistics: Mapping[str, TensorStatistics]) -> Importance:
    """The score of each tensor under one of `CONTROLS`, in place of its importance."""
    if control not in CONTROLS:
        raise ValueError(f"no control {control!r}: choose one of {', '.join(CONTROLS)}")
    return {name: CONTROLS[control](tensor) for name, tensor in statistics.items()}


def control_selection(
    control: str,
    graph: CostGraph,
    statistics: Mapping[str, TensorStatistics],
    backward_budget: float,
) -> Selection:
    """The best selection by a score of `CONTROLS`; its `importance` is the summed score."""
    return select(graph, scores(control, statistics), backward_budget)


def random_selection(graph: CostGraph, backward_budget: float, seed: int) -> Selection:
    """Tensors in random order, each taken if it still fits.  `importance` is 0: none was measured.

    Raises ValueError if the budget buys no tensor.
    """
    order = list(graph.tensors)
    Random(seed).shuffle(order)
    return _filled(graph, backward_budget, order)


def top_layers(graph: CostGraph, backward_budget: float) -> Selection:
    """Tensors from the loss downwards while they fit; what is left buys whatever still fits below.

    Closest to the loss is the order of `graph.tensors`.  `importance` is 0: none was measured.
    Raises ValueError if the budget buys no tensor.
    """
    return _filled(graph, backward_budget, graph.tensors)


def _filled(graph: CostGraph, backward_budget: float, order: Sequence[str]) -> Selection:
    require_feasible(graph, backward_budget)
    chosen = fill_any(graph, backward_budget, order)
    if not chosen:
        raise infeasible(graph, backward_budget)
    return selection(graph, {}, chosen, backward_budget)
