"""One run, from a configuration to its folder: start with `run.py`.

What of it knows no configuration belongs further down (`hf`, `engine`, `tasks`).
"""

from greentrainer.run import evaluation
from greentrainer.run.answers import answer, of_run, ready, write_answers
from greentrainer.run.asked import collator_of
from greentrainer.run.fitting import Fitting
from greentrainer.run.inputs import (
    RunInputs,
    load_task,
    to_learn,
    training_examples,
    with_template,
)
from greentrainer.run.inputs import encoded as encoded_of
from greentrainer.run.launch import launch, wanted
from greentrainer.run.memory import state_ratio, weights_of
from greentrainer.run.packing import packing_collator, packs_by_lengths
from greentrainer.run.prepared import material
from greentrainer.run.quickstart import CONFIG, quickstart
from greentrainer.run.reference import EpochOrder
from greentrainer.run.result import RunResult, bill_of
from greentrainer.run.run import execute, prepare, preview, rehearse, save, train
from greentrainer.run.together import tell_launcher
from greentrainer.run.training import mode_of, require_budget

__all__ = [
    "CONFIG",
    "EpochOrder",
    "Fitting",
    "RunInputs",
    "RunResult",
    "answer",
    "bill_of",
    "collator_of",
    "encoded_of",
    "evaluation",
    "execute",
    "launch",
    "load_task",
    "material",
    "mode_of",
    "of_run",
    "packing_collator",
    "packs_by_lengths",
    "prepare",
    "preview",
    "quickstart",
    "ready",
    "rehearse",
    "require_budget",
    "save",
    "state_ratio",
    "tell_launcher",
    "to_learn",
    "train",
    "training_examples",
    "wanted",
    "weights_of",
    "with_template",
    "write_answers",
]
