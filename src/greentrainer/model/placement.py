"""Where a model lies."""

from typing import Any

from torch import nn
from torch.nn.parallel import DataParallel


def require_in_one_place(model: nn.Module) -> None:
    """Raise ValueError for a model whose parts lie, or are copied to, several places."""
    if isinstance(model, DataParallel):
        raise ValueError(
            "DataParallel copies the model at each step: give the model in it (model.module), or "
            "start a process for each GPU with torchrun"
        )
    mapped: Any = getattr(model, "hf_device_map", {})
    places = {str(place) for place in mapped.values()}
    if len(places) > 1 or "disk" in places:
        found = ", ".join(sorted(places))
    elif len(devices := {str(parameter.device) for parameter in model.parameters()}) > 1:
        found = ", ".join(sorted(devices))
    else:
        return
    raise ValueError(
        f"the model lies in several places ({found}): load it on one device (without "
        "device_map, or with device_map={'': 0}), or share it out among processes by FSDP2"
    )
