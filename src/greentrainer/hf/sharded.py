"""FSDP2 by the Trainer's own path: what it is told, and what it is spared.

with sharding():
    trainer = GreenTrainer(model, args=TrainingArguments(folder, **FSDP), ...)
    trainer.train()
"""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from torch import nn
from torch.distributed.checkpoint import default_planner
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from greentrainer.model import is_sharded

FSDP: dict[str, Any] = {
    "fsdp": True,
    "fsdp_config": {"version": 2, "state_dict_type": "SHARDED_STATE_DICT"},
}
"""Training arguments."""


@contextmanager
def sharding(wanted: bool = True) -> Iterator[None]:
    """In here a Trainer that is told to shards on processors too, if that is wanted.

    accelerate shards on GPUs and the like, and makes FSDP on processors alone into DDP, without a
    word.
    """
    state = PartialState._shared_state
    before = state.get("distributed_type")
    if not wanted or torch.cuda.is_available() or before != DistributedType.MULTI_CPU:
        yield
        return
    AcceleratorState._reset_state()
    state["distributed_type"] = DistributedType.MULTI_GPU
    try:
        yield
    finally:
        state["distributed_type"] = before


@contextmanager
def loading_part() -> Iterator[None]:
    """In here a sharded optimizer's state is loaded as far as it was saved.

    Of tensors that were never trained there is none; torch would miss it.
    """
    plain: Any = default_planner.DefaultLoadPlanner
    default_planner.DefaultLoadPlanner = partial(  # type: ignore[misc, assignment]
        plain, allow_partial_load=True
    )
    try:
        yield
    finally:
        default_planner.DefaultLoadPlanner = plain  # type: ignore[misc]


def forget(model: nn.Module, optimizer: torch.optim.Optimizer, known: Collection[str]) -> None:
    """Take away the state that loading has made of tensors that had none."""
    for name, parameter in model.named_parameters():
        if name not in known:
            optimizer.state.pop(parameter, None)


def whole_state(model: nn.Module) -> dict[str, Any] | None:
    """Of a sharded model the whole tensors, in the memory of the first process's host.

    All processes ask; the others get nothing.  None for a model that is not sharded.
    """
    if not is_sharded(model):
        return None
    return get_model_state_dict(
        model, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
    )
