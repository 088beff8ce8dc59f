"""Compiling a model block by block.

Freezing changes which gradients a block computes, and a compiled graph is made for one such set.
Compiled whole, a model would need a graph for every selection.  Blocks of one kind share theirs:
one for blocks below the selection, one for those trained whole, and one for each other set of
tensors that is trained in some block.  That may be one for each block, more than torch compiles
before it gives up and runs the rest uncompiled, so its limit is raised here.  With gradient through
the ends of rows only there is one more for all prefixes (`forward/handed.py`).

Not every version of torch sees for itself that a parameter came to require a gradient (2.11 takes
the graph made while it was frozen, and no gradient comes of it), so what is trained in a block is
an argument of what is compiled.

transformers makes a cache in each training pass that nobody asked for, if its configuration says no
more, and each layer's is another to a graph: so a training pass of a compiled model makes none.
"""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch._dynamo
from torch import nn

from greentrainer.forward import handing, take_plain_keys
from greentrainer.model import blocks

GRAPHS_PER_BLOCK = 8
"""Sets of trained tensors that each block may meet over a run before torch gives up on it."""


def compile_blocks(model: nn.Module, **options: Any) -> int:
    """Compile each block in place; returns their number.

    options: of `torch.compile`; batches are of many sizes, so `dynamic` is True by default.

    Raises ValueError for a model without repeated blocks.
    """
    found = blocks(model)
    if not found:
        raise ValueError(f"{type(model).__name__} has no repeated blocks to compile one by one")
    limit = GRAPHS_PER_BLOCK * len(found)
    settings: Any = torch._dynamo.config
    settings.recompile_limit = max(settings.recompile_limit, limit)
    settings.accumulated_recompile_limit = max(settings.accumulated_recompile_limit, limit)
    take_plain_keys(model)
    compiled = torch.compile(_called, **{"dynamic": True, **options})
    model.register_forward_pre_hook(_without_cache, with_kwargs=True)
    for number, block in enumerate(found):
        block._compiled_call_impl = _calling(compiled, block, number)
    return len(found)


def _without_cache(model: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
    """What a pass is called with: one that trains asks for no cache, if nothing is said of it."""
    asked = any(kwargs.get(name) is not None for name in ("use_cache", "cache", "past_key_values"))
    if asked or not (model.training and torch.is_grad_enabled() and _knows_cache(model)):
        return None
    return args, {**kwargs, "use_cache": False}


def _knows_cache(model: nn.Module) -> bool:
    inner: Any = getattr(model, "get_base_model", lambda: model)()  # of PEFT's wrapper
    return "use_cache" in inspect.signature(type(inner).forward).parameters


def _called(block: nn.Module, trained: str, args: Any, kwargs: Any) -> Any:
    """A block's forward pass.  trained: for each of its parameters whether it is, never empty.

    Looked at, for a graph is made only for what was looked at.
    """
    assert trained
    return block._call_impl(*args, **kwargs)


def _calling(compiled: Callable[..., Any], block: nn.Module, number: int) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        trained = "".join("+" if p.requires_grad else "-" for p in block.parameters())
        return handing(partial(compiled, block, trained or "none", args), number, kwargs)

    return call


def layout(model: nn.Module) -> dict[str, dict[str, Any]]:
    """For each of the model's parameters the number of its block, or None, and its name within."""
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
