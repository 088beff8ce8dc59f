"""Choosing the tensors to train: the exact selector, a file a stage, and controls beside it.

Start with `knapsack.py`.  What tensors are worth comes from `importance`, the budget from `engine`.
"""

from greentrainer.select.blind import Blind, by_rule, fixed
from greentrainer.select.controls import (
    CONTROLS,
    control_selection,
    random_selection,
    scores,
    top_layers,
)
from greentrainer.select.knapsack import select
from greentrainer.select.optimum import optimum_at_most

__all__ = [
    "CONTROLS",
    "Blind",
    "by_rule",
    "control_selection",
    "fixed",
    "optimum_at_most",
    "random_selection",
    "scores",
    "select",
    "top_layers",
]
