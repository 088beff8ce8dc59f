"""Activation checkpointing of a model, switched on for some passes."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from greentrainer.hf.input_gradients import redo_input_gradients, undo_input_gradients


@contextmanager
def recomputing(model: nn.Module, on: bool = True) -> Iterator[None]:
    """In here the model makes activations again in the backward pass, if `on`.

    Of the blocks that the gradient passes through: none is demanded at the input embeddings.
    """
    if not on:
        yield
        return
    config: Any = model.config
    cached = getattr(config, "use_cache", None)
    config.use_cache = False
    _switch(model, "enable")({"use_reentrant": False})
    undo_input_gradients(model)
    try:
        yield
    finally:
        redo_input_gradients(model)
        _switch(model, "disable")()
        config.use_cache = cached


def _switch(model: Any, name: str) -> Any:
    """As this release of transformers calls it."""
    new = getattr(model, f"activation_checkpointing_{name}", None)
    return new or getattr(model, f"gradient_checkpointing_{name}")
