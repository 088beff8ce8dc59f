"""Choosing the tensors to train: the exact selector, and controls to compare it with."""

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
from greentrainer.types import Selection, TensorStatistics

__all__ = [
    "CONTROLS",
    "Blind",
    "Selection",
    "TensorStatistics",
    "by_rule",
    "control_selection",
    "fixed",
    "optimum_at_most",
    "random_selection",
    "scores",
    "select",
    "top_layers",
]
