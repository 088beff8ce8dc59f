"""Gradients that activation checkpointing demands at the input embeddings, undone."""

from typing import Any

ENABLE = "enable_input_require_grads"
"""The method of a model that demands them."""


def undo_input_gradients(model: Any) -> None:
    """Undo what activation checkpointing does to the input embeddings, and let it not come again.

    A gradient demanded there makes every block pay the backward pass, whatever is frozen.  It is
    needed only by reentrant checkpointing, which tracing refuses.  Some Trainers switch
    checkpointing off and on again within a step, which would demand it anew.
    """
    for module in model.modules():
        if "_require_grads_hooks" in vars(module) or "_require_grads_hook" in vars(module):
            module.disable_input_require_grads()
        for key, hook in list(module._forward_hooks.items()):  # as Trainers hang up themselves
            if getattr(hook, "__name__", "").startswith("make_inputs_require_grad"):
                del module._forward_hooks[key]
        if hasattr(module, ENABLE):
            vars(module)[ENABLE] = _demand_none


def redo_input_gradients(model: Any) -> None:
    """Let a model demand gradients at its input embeddings again."""
    for module in model.modules():
        if vars(module).get(ENABLE) is _demand_none:
            del vars(module)[ENABLE]


def _demand_none() -> None:
    """In place of the method that demands gradients."""
