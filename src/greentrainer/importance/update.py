"""The update that an optimizer would make now: `delta_w`, of one tensor at a time.

A twin of the user's optimizer steps a copy of the tensor with a copy of its state.  A warm-up
starts at a learning rate of exactly 0, where every update and so every importance would be 0.  A
param group whose `lr` is 0 is therefore updated with its `initial_lr`, which torch's schedulers put
there: to first order tensors come in the same order at any rate.
"""

import copy
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from greentrainer.model import exact_copy, shell


def updated_weights(
    optimizer: torch.optim.Optimizer,
    group: Mapping[str, Any],
    parameter: nn.Parameter,
    gradient: torch.Tensor,
) -> torch.Tensor:
    """The weights after the step that the optimizer would take on this one tensor."""
    weight = nn.Parameter(exact_copy(optimizer, parameter))
    weight.grad = exact_copy(optimizer, gradient)
    other = twin(optimizer, group, [weight])
    if parameter in optimizer.state:
        other.state[weight] = copy.deepcopy(optimizer.state[parameter])
    type(optimizer).step(other)
    return weight.detach()


def twin(
    optimizer: torch.optim.Optimizer, group: Mapping[str, Any], weights: list[nn.Parameter]
) -> Any:
    """An optimizer like this one for other weights, with the settings of a group and no state.

    Step it by the class's own `step` (`model.shell`).
    """
    options = {k: copy.deepcopy(v) for k, v in group.items() if k not in ("params", "param_names")}
    if options.get("lr") == 0:
        options["lr"] = options.get("initial_lr", 0.0)
    other = shell(optimizer, options, weights)
    other.state = defaultdict(dict)
    return other
