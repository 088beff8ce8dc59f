"""What a run is told: start with `keys.py`, which has every key; `reading.py` makes it of files.

What a key comes to on a model and a device does not belong here, but in `run`.
"""

from greentrainer.config.keys import BUDGETS, RunConfig, Source
from greentrainer.config.reading import (
    merged,
    nearest,
    over,
    read,
    read_mapping,
    require_resumable,
    settings,
    validated,
)

__all__ = [
    "BUDGETS",
    "RunConfig",
    "Source",
    "merged",
    "nearest",
    "over",
    "read",
    "read_mapping",
    "require_resumable",
    "settings",
    "validated",
]
