"""Joules and grams of CO2: hardware's counters, meters over them, the grid's intensity.

Start with `meter.py`.  Budgets in such units belong to `budget`.
"""

from greentrainer.energy.consumption import NOTHING, Consumption, Intensity, Used, read_schedule
from greentrainer.energy.counters import Found, GpuPower, nvml, rapl, visible_gpus
from greentrainer.energy.meter import (
    JOULES_PER_KWH,
    UNMETERED,
    WORLD_INTENSITY,
    Energy,
    Estimate,
    Meter,
    assumed_watts,
    require_meter,
    start_meter,
)

__all__ = [
    "JOULES_PER_KWH",
    "NOTHING",
    "UNMETERED",
    "WORLD_INTENSITY",
    "Consumption",
    "Energy",
    "Estimate",
    "Found",
    "GpuPower",
    "Intensity",
    "Meter",
    "Used",
    "assumed_watts",
    "nvml",
    "rapl",
    "read_schedule",
    "require_meter",
    "start_meter",
    "visible_gpus",
]
