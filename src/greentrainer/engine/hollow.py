"""A model without values, to trace in the place of one that is going to be cut into shards."""

import copy
from typing import Any

import torch
from torch import nn


def hollow(model: nn.Module) -> nn.Module:
    """A copy of a model without values: every parameter and buffer on the meta device.

    What is cut into shards later can no longer be traced; its hollow copy can.
    """
    tensors = [*model.named_parameters(), *model.named_buffers()]
    memo: dict[int, Any] = {}
    for _, tensor in tensors:
        blank = torch.empty_like(tensor, device="meta")
        kept = (
            nn.Parameter(blank, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else blank
        )
        memo[id(tensor)] = kept
    return copy.deepcopy(model, memo)
