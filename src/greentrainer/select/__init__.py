"""Choosing the tensors to train: the exact selector, and controls to compare it with."""

from greentrainer.select.controls import (
    CONTROLS,
    control_selection,
    random_selection,
    top_layers,
)
from greentrainer.select.knapsack import select
from greentrainer.types import Selection, TensorStatistics

__all__ = [
    "CONTROLS",
    "Selection",
    "TensorStatistics",
    "control_selection",
    "random_selection",
    "select",
    "top_layers",
]
