"""What is asked of any torch model and its device: start with `freeze.py`.

Its stages, freezing that is taken back, a snapshot that leaves no trace, several processes, peak
memory.  Nothing here knows costs, tasks or Hugging Face.
"""

from greentrainer.model.device import PeakMemory, now
from greentrainer.model.freeze import Freezer, OptimizerState
from greentrainer.model.in_backward import InBackward
from greentrainer.model.placement import require_in_one_place
from greentrainer.model.processes import (
    Alone,
    Elsewhere,
    Replicas,
    Together,
    checksums,
    is_sharded,
    joined,
    local_rank,
    on_this_machine,
    started,
)
from greentrainer.model.rounding import exact_copy, round_stochastically
from greentrainer.model.shards import Shards
from greentrainer.model.shell import shell
from greentrainer.model.snapshot import attributes_preserved, preserved
from greentrainer.model.stages import blocks, encoder_of, stages

__all__ = [
    "Alone",
    "Elsewhere",
    "Freezer",
    "InBackward",
    "OptimizerState",
    "PeakMemory",
    "Replicas",
    "Shards",
    "Together",
    "attributes_preserved",
    "blocks",
    "checksums",
    "encoder_of",
    "exact_copy",
    "is_sharded",
    "joined",
    "local_rank",
    "now",
    "on_this_machine",
    "preserved",
    "require_in_one_place",
    "round_stochastically",
    "shell",
    "stages",
    "started",
]
