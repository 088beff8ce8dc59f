"""An optimizer for other tensors: of the same class and settings, made without its constructor."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn


def shell(
    optimizer: torch.optim.Optimizer, options: Mapping[str, Any], parameters: list[nn.Parameter]
) -> Any:
    """An optimizer like this one for these tensors, with its state and without its hooks.

    options: settings of their group.  The constructor's arguments are not known, so it is not
    called.  Step it by the class's own `step`: an instance's is left behind, as schedulers put one
    there that is bound to the original.
    """
    made = object.__new__(type(optimizer))
    made.__dict__.update(optimizer.__dict__)
    made.__dict__.pop("step", None)
    made.__dict__.update(_optimizer_step_pre_hooks={}, _optimizer_step_post_hooks={})
    kept = {k: v for k, v in options.items() if k not in ("params", "param_names")}
    made.param_groups = [{**kept, "params": parameters}]
    return made
