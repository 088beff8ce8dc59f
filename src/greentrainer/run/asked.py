"""What a configuration asks of the engine, and what is taken where it says nothing."""

from typing import Any

import torch

from greentrainer.budget import Cost
from greentrainer.config import RunConfig
from greentrainer.engine import StepsAsked
from greentrainer.forward import ForwardOptions, Positions
from greentrainer.methods import METHODS, Method
from greentrainer.tasks import encode

KEPT_MULTIPLE = 64
"""Where activations are kept, what a pass computes of a row is to be the same to the bit whatever
rows it comes with: so all have one of very few lengths."""


def collator_of(config: RunConfig, tokenizer: Any) -> encode.Collator:
    """What makes the run's batches."""
    multiple = config.pad_multiple
    if multiple is None and forward_of(config, METHODS[config.method], 0).keep != "nothing":
        multiple = KEPT_MULTIPLE
    return encode.Collator(encode.pad_id(tokenizer), multiple, config.max_length)


def cost_of(config: RunConfig, method: Method, device: torch.device) -> Cost:
    """What a share is a share of: as asked, or what pays on the device."""
    if config.cost is not None:
        return config.cost
    chooses = config.budget[0] == "rho" and steps_asked(config, method) == "choose"
    return "seconds" if chooses and device.type == "cuda" else "flops"


def forward_of(config: RunConfig, method: Method, examples: int) -> ForwardOptions:
    """What is left out of the forward pass: what was asked for, or what method green does."""
    chooses = method.budgeted and not method.shortened
    again = chooses and config.epochs > 1 and not config.compile
    again = again and steps_asked(config, method) == "all" and not config.published
    again = again and config.packing != "on"
    head = False if config.published else config.labelled_head
    return ForwardOptions(
        labelled_head=chooses if head is None else head,
        keep=config.keep_activations or ("memory" if again else "nothing"),
        keep_folder=config.keep_folder,
        keep_bytes=config.keep_bytes,
        keep_bfloat16=config.keep_bfloat16,
        examples=examples,
    )


def steps_asked(config: RunConfig, method: Method) -> StepsAsked:
    """Whether the number of steps is chosen: as asked, or as method green does."""
    chooses = method.budgeted and not method.shortened
    chooses = chooses and config.metric == "first_order" and config.rho != 1
    chooses = chooses and config.carbon_schedule is None
    if config.steps == "choose" and not chooses:
        raise ValueError(
            "steps are chosen by method green with first_order importance, without a carbon "
            "schedule: leave steps out, or choose these"
        )
    found: StepsAsked = "all"
    if config.steps is not None:
        found = config.steps
    elif chooses and config.passes != "all" and not config.published:
        found = "choose"
    if config.prompts != "whole" and found != "choose":
        raise ValueError(
            f"prompts is {config.prompts!r}, which is for runs that choose their steps: leave it "
            "out, or use method green without steps, passes and published"
        )
    return found


def may_shorten(config: RunConfig, method: Method) -> bool:
    """Whether a run that has to make room may choose how far gradient passes through prompts."""
    chosen = positions_of(config, method) == "choose"
    free = config.positions is None and config.rho == 1 and not config.published
    able = method.budgeted and not config.activation_checkpointing
    return chosen or (free and able)


def positions_of(config: RunConfig, method: Method) -> Positions:
    """Which positions gradient passes through: as asked, or as method green chooses."""
    if config.positions is not None:
        return config.positions
    if config.published:
        return "all"
    chooses = method.budgeted and config.metric == "first_order" and config.rho != 1
    return "choose" if chooses and not config.activation_checkpointing else "all"
