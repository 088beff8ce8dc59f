"""A run on a GPU that is over before choosing would pay: it makes whole steps, and fewer of them.

There a share is one of seconds, and to decide what a step trains takes some: tracing what it costs,
and passes that measure what it is worth.  Where that is more than `DECIDING` of what may be spent,
the best that is left is what needs no deciding: steps of full fine-tuning, the schedule of the
learning rate compressed into as many as the share pays for.  What was decided is kept in the run's
folder, so that a resumed run goes on with it.
"""

import json
import warnings
from collections.abc import Callable
from typing import Any

from torch import nn

from greentrainer.budget import DECIDING
from greentrainer.config import RunConfig
from greentrainer.methods import METHODS
from greentrainer.model import joined, now, preserved
from greentrainer.records import write_json
from greentrainer.run.asked import cost_of
from greentrainer.types import Batch

TRACED = 0.03
"""Seconds of tracing for each tensor of a model: 272 of SmolLM2-135M take 7 on two processor cores;
beside an H200 whole passes alone took 4.6 (docs/log.md)."""
PROBED = 8
"""Passes that measure what tensors and tails are worth and how fast they go."""
KEPT = "pace.json"


def settled(
    config: RunConfig, model: nn.Module, steps: int, batch: Callable[[], Batch]
) -> RunConfig:
    """The configuration as the run keeps to it.

    steps: of the whole run.  batch: makes the first of them, on the model's device.
    """
    device = next(model.parameters()).device
    if config.cost is not None or cost_of(config, METHODS[config.method], device) != "seconds":
        return config
    place, processes = config.output_dir / KEPT, joined()
    known: dict[str, Any] = {}
    if config.resume and place.is_file():
        known = json.loads(place.read_text(encoding="utf-8"))
    if not processes.first(known):
        step = max(processes.every(seconds_of_step(model, batch())))
        known = {"seconds_of_step": step, "chooses": pays(config, model, steps, step)}
        if place.parent.is_dir() and processes.rank == 0:
            write_json(place, known)
    known = processes.first(known)
    if known["chooses"]:
        return config.model_copy(update={"cost": "seconds"})
    if not _may_be_whole(config):
        return config.model_copy(update={"cost": "flops"})
    warnings.warn(
        "whole steps alone, and fewer of them: in so short a run choosing what a step trains would "
        f"take more than {DECIDING:.0%} of it (--cost flops chooses all the same)",
        stacklevel=2,
    )
    return config.model_copy(update={"method": "full_at_budget", "cost": "flops"})


def _may_be_whole(config: RunConfig) -> bool:
    """Whether nothing was asked for that plain steps do without."""
    given = (config.positions, config.labelled_head, config.keep_activations, config.lora_rank)
    other = (
        config.activation_checkpointing or config.bits or config.memory or config.prompts != "whole"
    )
    return not other and all(one is None for one in given)


def pays(config: RunConfig, model: nn.Module, steps: int, step: float) -> bool:
    """Whether deciding stays within its share.  step: seconds of one."""
    tensors = sum(p.requires_grad for p in model.parameters())
    deciding = TRACED * tensors + PROBED * step
    return deciding <= DECIDING * config.budget[1] * steps * step


def seconds_of_step(model: nn.Module, batch: Batch) -> float:
    """Of a plain forward and backward pass, the second of two; nothing is left of them."""
    device = next(model.parameters()).device
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    seconds = 0.0
    for _ in range(2):  # kernels are loaded in the first
        with preserved(model, trained):
            model.train()
            start = now(device)
            model(**batch).loss.backward()
            seconds = now(device) - start
            for parameter in model.parameters():
                parameter.grad = None
    return seconds
