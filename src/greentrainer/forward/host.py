"""What a batch says, looked at on the host, so that no step waits for its device.

Where a batch is cut and which of its positions have labels is told by labels and mask.  To look at
them on a GPU means to wait for all that it has to do.  So they are looked at in the copy that the
batch was made of: whoever moves a batch to a device says so (`moved`); otherwise a copy is fetched,
once for each tensor.  What comes of it goes to the device without waiting either.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils.weak import WeakIdKeyDictionary

LOOKED_AT = ("labels", "attention_mask", "input_ids", "position_ids")
"""What of a batch is looked at."""

_copies: Any = WeakIdKeyDictionary()
"""For each tensor on a device its version and its copy; forgotten with the tensor."""


def moved(batch: Any, original: Any) -> None:
    """`batch` on its device was made of `original` on the host."""
    if not (isinstance(batch, Mapping) and isinstance(original, Mapping)):
        return
    for name in LOOKED_AT:
        there, here = batch.get(name), original.get(name)
        if isinstance(there, torch.Tensor) and isinstance(here, torch.Tensor) and there is not here:
            remember(there, here)


def remember(tensor: torch.Tensor, copy: torch.Tensor) -> None:
    """`copy`, on the host, holds what `tensor` does, until this one is written to."""
    if tensor.device.type not in ("cpu", "meta") and not tensor.is_inference():
        _copies[tensor] = tensor._version, copy


def on_host(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor on the host; waits for the device only if no copy of it is known."""
    if tensor.device.type in ("cpu", "meta"):
        return tensor
    version, known = _copies.get(tensor, (None, None))
    copy: torch.Tensor = known if version == tensor._version else tensor.cpu()
    remember(tensor, copy)
    return copy


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor of the host on a device, without waiting for it."""
    if device.type == "cuda" and not isinstance(tensor, FakeTensor):
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor if device.type == "cpu" else tensor.to(device)
