"""Leaves a model as it was found: what a forward and backward pass could change is put back."""

import random
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

Buffers = dict[str, torch.Tensor | None]


@contextmanager
def preserved(model: nn.Module, trained: Collection[str]) -> Iterator[None]:
    """In here exactly `trained` require a gradient; afterwards everything is as before.

    Kept: gradients (the same objects), `requires_grad`, buffers, the mode and other attributes of
    every module, and the random streams of torch on all devices, of Python and of numpy.  Also
    after an exception.
    """
    parameters = dict(model.named_parameters())
    before = {name: (p.requires_grad, p.grad) for name, p in parameters.items()}
    modes = {module: module.training for module in model.modules()}
    buffers = [(module._buffers, dict(module._buffers)) for module in model.modules()]
    values = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    streams = _random_streams()
    try:
        for name, parameter in parameters.items():
            parameter.grad = None
            parameter.requires_grad_(name in trained)
        with torch.enable_grad(), attributes_preserved(model):
            yield
    finally:
        for name, parameter in parameters.items():
            flag, gradient = before[name]
            parameter.requires_grad_(flag)
            parameter.grad = gradient
        for module, mode in modes.items():
            module.training = mode
        _restore_buffers(buffers, values)
        _set_random_streams(streams)


@contextmanager
def attributes_preserved(model: nn.Module) -> Iterator[None]:
    """Afterwards every module has the attributes it had, such as the longest length it has met.

    And no hooks that were hung on it meanwhile: a model that hangs up its own when it is first
    called keeps a note of it in an attribute, and would hang them up twice.
    """
    before = [(vars(module), dict(vars(module))) for module in model.modules()]
    hooks = [(held, set(held)) for module in model.modules() for held in _hooks_of(module)]
    try:
        yield
    finally:
        for current, old in before:
            for name in current.keys() - old.keys():
                del current[name]
            current.update(old)
        for held, known in hooks:
            for key in held.keys() - known:
                del held[key]


def _hooks_of(module: nn.Module) -> list[dict[int, Any]]:
    named = (value for name, value in vars(module).items() if name.endswith("_hooks"))
    return [held for held in named if isinstance(held, dict)]


def _restore_buffers(
    buffers: Iterable[tuple[Buffers, Buffers]], values: Iterable[tuple[torch.Tensor, torch.Tensor]]
) -> None:
    """Put buffers back: the objects that were replaced or added, and the values that changed."""
    for current, before in buffers:
        current.clear()
        current.update(before)
    for buffer, value in values:
        if not torch.equal(buffer, value):
            buffer.copy_(value)


def _random_streams() -> dict[str, Any]:
    streams: dict[str, Any] = {"torch": torch.get_rng_state(), "python": random.getstate()}
    if torch.cuda.is_available():
        streams["cuda"] = torch.cuda.get_rng_state_all()
    if "numpy" in sys.modules:
        streams["numpy"] = sys.modules["numpy"].random.get_state()
    return streams


def _set_random_streams(streams: Mapping[str, Any]) -> None:
    torch.set_rng_state(streams["torch"])
    random.setstate(streams["python"])
    if "cuda" in streams:
        torch.cuda.set_rng_state_all(streams["cuda"])
    if "numpy" in streams:
        sys.modules["numpy"].random.set_state(streams["numpy"])
