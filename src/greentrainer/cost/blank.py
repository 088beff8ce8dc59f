"""A model whose tensors are others for a while: blanks under a fake mode, or aliases.

Nothing is computed with blanks and no weight is read, so a model on the meta device will do.
"""

import gc
import sys
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import _disable_current_modes, is_traceable_wrapper_subclass
from torch.utils._pytree import tree_iter, tree_map_only

from greentrainer.cost.draws import CertainDraws
from greentrainer.model import attributes_preserved
from greentrainer.types import Batch


@contextmanager
def faked(
    model: nn.Module, batch: Batch, trainable: Collection[str]
) -> Iterator[tuple[dict[str, torch.Tensor], Batch]]:
    """In here, under a fake mode, the model has blanks for its tensors; gives them and a batch.

    Exactly `trainable` require a gradient.
    """
    home = device_of(batch)
    state = {name: blank(tensor, home) for name, tensor in state_of(model).items()}
    for name in trainable:
        state[name].requires_grad_()
    with ExitStack() as stack:
        stack.enter_context(uncompiled())
        stack.enter_context(uncollected())
        stack.enter_context(attributes_preserved(model))
        stack.enter_context(holding(model, state))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(CertainDraws())
        yield state, tree_map_only(torch.Tensor, partial(blank, home=home), batch)


def unseen() -> AbstractContextManager[None]:
    """In here modes around see nothing of what is run: a trace executes nothing to be counted."""
    return _disable_current_modes()


def state_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers by name."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def device_of(batch: Batch) -> torch.device:
    """Where a batch lies; the CPU for one on the meta device."""
    places = [t.device for t in tree_iter(batch) if isinstance(t, torch.Tensor) and not t.is_meta]
    return places[0] if places else torch.device("cpu")


def blank(tensor: torch.Tensor, home: torch.device) -> torch.Tensor:
    """A tensor like this one without values (made under the fake mode); meta comes `home`.

    One made of others (a quantised weight and its scales) is made of blanks.
    """
    whole: Any = tensor
    if is_traceable_wrapper_subclass(whole):
        names, context = whole.__tensor_flatten__()
        inner = {name: blank(getattr(whole, name), home) for name in names}
        return type(whole).__tensor_unflatten__(inner, context, whole.size(), whole.stride())
    device = home if tensor.is_meta else tensor.device
    made = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)
    return _with_attributes(made, tensor)


def alias(tensor: torch.Tensor) -> torch.Tensor:
    """A leaf on the same weights with a gradient of its own; buffers are copied."""
    alias = tensor.detach()
    return _with_attributes(alias if isinstance(tensor, nn.Parameter) else alias.clone(), tensor)


def _with_attributes(made: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    """With what the tensor carries beside its values (how they were quantised)."""
    made.__dict__.update(vars(tensor))
    return made


@contextmanager
def uncompiled() -> Iterator[None]:
    """Go around `torch.compile`: a frame skipped here, under a mode, would stay uncompiled."""
    if "torch._dynamo" not in sys.modules:
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


@contextmanager
def uncollected() -> Iterator[None]:
    """Without garbage collection: it looks at every object there is, and tracing makes many."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextmanager
def holding(model: nn.Module, state: dict[str, torch.Tensor]) -> Iterator[None]:
    """Other tensors in the place of parameters and buffers, tied ones wherever they are held.

    (`functional_call` loses the original where one module has two names, as PEFT gives it.)
    """
    names = {id(tensor): name for name, tensor in state_of(model).items()}
    held: list[tuple[dict[str, Any], str, torch.Tensor]] = [
        (place, key, tensor)
        for module in model.modules()
        for place in _places(module)
        for key, tensor in place.items()
        if tensor is not None
    ]
    try:
        for place, key, tensor in held:
            place[key] = state[names[id(tensor)]]
        yield
    finally:
        for place, key, tensor in held:
            place[key] = tensor


def _places(module: nn.Module) -> tuple[dict[str, Any], dict[str, Any]]:
    return module._parameters, module._buffers
