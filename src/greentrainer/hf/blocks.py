"""Compiling a model block by block.

Freezing changes which gradients a block computes, and a compiled graph is made for one such set.
Compiled whole, a model would need a graph for every selection.  Blocks of one kind share theirs:
one for blocks below the selection, one for those trained whole, and one for each other set of
tensors that is trained in some block.  That may be one for each block, more than torch compiles
before it gives up and runs the rest uncompiled, so its limit is raised here.
"""

from typing import Any

import torch._dynamo
from torch import nn

from greentrainer.model import blocks

GRAPHS_PER_BLOCK = 8
"""Sets of trained tensors that each block may meet over a run before torch gives up on it."""


def compile_blocks(model: nn.Module, **options: Any) -> int:
    """Compile each block in place; returns their number.  options: of `torch.compile`.

    Raises ValueError for a model without repeated blocks.
    """
    found = blocks(model)
    if not found:
        raise ValueError(f"{type(model).__name__} has no repeated blocks to compile one by one")
    limit = GRAPHS_PER_BLOCK * len(found)
    settings: Any = torch._dynamo.config
    settings.recompile_limit = max(settings.recompile_limit, limit)
    settings.accumulated_recompile_limit = max(settings.accumulated_recompile_limit, limit)
    for block in found:
        block.compile(**options)
    return len(found)


def layout(model: nn.Module) -> dict[str, dict[str, Any]]:
    """For each parameter the number of its block, None outside of them, and its name within."""
    found = blocks(model)
    homes = {
        id(parameter): (number, name)
        for number, block in enumerate(found)
        for name, parameter in block.named_parameters()
    }
    return {
        name: dict(zip(("block", "kind"), homes.get(id(p), (None, name)), strict=True))
        for name, p in model.named_parameters()
    }
