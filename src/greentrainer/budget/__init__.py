"""What may be spent: units, the clock that translates them, and the plan of spending.

Start with `budget.py`.  Choosing what to spend it on is the engine's.
"""

from greentrainer.budget.budget import Budget, Cost, Terms
from greentrainer.budget.calibrate import DECIDING, device_name, set_clock, trials_of
from greentrainer.budget.clock import Clock, load_clock, slowest
from greentrainer.budget.spending import SLACK, TIMED_SLACK, SpendingPlan
from greentrainer.budget.units import CostUnit

__all__ = [
    "DECIDING",
    "SLACK",
    "TIMED_SLACK",
    "Budget",
    "Clock",
    "Cost",
    "CostUnit",
    "SpendingPlan",
    "Terms",
    "device_name",
    "load_clock",
    "set_clock",
    "slowest",
    "trials_of",
]
