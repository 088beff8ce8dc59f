"""The frozen values that one stage hands to the next: start with `cost_graph.py`.

Here belongs what several packages must agree on, without torch; what computes any of it does not.
"""

from greentrainer.types.cost_graph import CostGraph, Stage
from greentrainer.types.dag import Parents, ancestors, contract, descendants, dominators, meet
from greentrainer.types.lengths import rounded
from greentrainer.types.parts import PARTS, Part, Prompts, parts_of, way_of
from greentrainer.types.values import (
    IGNORED,
    Batch,
    Importance,
    LossFn,
    Selection,
    Tail,
    TensorStatistics,
    Unit,
    loss_of,
    rows_in,
    taken,
)

__all__ = [
    "IGNORED",
    "PARTS",
    "Batch",
    "CostGraph",
    "Importance",
    "LossFn",
    "Parents",
    "Part",
    "Prompts",
    "Selection",
    "Stage",
    "Tail",
    "TensorStatistics",
    "Unit",
    "ancestors",
    "contract",
    "descendants",
    "dominators",
    "loss_of",
    "meet",
    "parts_of",
    "rounded",
    "rows_in",
    "taken",
    "way_of",
]
