"""Gradients one by one: each is shown to a visitor as it arrives, and freed."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from greentrainer.types import Batch, LossFn, loss_of

CHUNK = 1 << 20
"""Elements turned to float64 at a time."""


Visitor = Callable[[str, nn.Parameter, torch.Tensor], None]
"""Called with a tensor's name, the tensor and its gradient as the gradient arrives."""


def probed(model: nn.Module, tensors: Iterable[str] | None) -> dict[str, nn.Parameter]:
    """The parameters of these names, or all that require a gradient; ValueError for none."""
    parameters = dict(model.named_parameters())
    if tensors is None:
        chosen = {name: p for name, p in parameters.items() if p.requires_grad}
    else:
        names = list(tensors)
        for name in names:
            if name not in parameters:
                raise ValueError(f"the model has no tensor {name!r} to measure")
        chosen = {name: parameters[name] for name in names}
    if not chosen:
        raise ValueError("there is no tensor to measure: set requires_grad on some")
    return chosen


def groups_of(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]
) -> dict[str, dict[str, Any]]:
    """Tensor name -> the param group that holds it."""
    holder = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in parameters.items():
        if id(parameter) not in holder:
            raise ValueError(f"tensor {name!r} is in no param group: give it to the optimizer")
    return {name: holder[id(parameter)] for name, parameter in parameters.items()}


def visit(
    model: nn.Module,
    batch: Batch,
    number: int,
    loss_fn: LossFn | None,
    parameters: Mapping[str, nn.Parameter],
    visitor: Visitor,
) -> None:
    """One backward pass; each gradient is shown to the visitor as it arrives, then freed."""
    with _arriving(parameters, visitor):
        loss = loss_of(model, batch, loss_fn)
        if loss.numel() != 1:
            raise ValueError(f"the loss must be one number, not of shape {tuple(loss.shape)}")
        if not math.isfinite(float(loss.detach())):
            raise ValueError(
                f"the loss of batch {number} is {float(loss.detach())}: "
                "check the data and the learning rate"
            )
        if loss.requires_grad:
            loss.backward()
    for name, parameter in parameters.items():  # gradients that came without a hook, as of shards
        if parameter.grad is not None:
            gradient, parameter.grad = parameter.grad, None
            visitor(name, parameter, gradient)


def whole_tensors(
    values: Mapping[str, float], parameters: Mapping[str, nn.Parameter]
) -> Mapping[str, float]:
    """Values that each process has of its own shards -> those of whole tensors."""
    meshes = [p.device_mesh for p in parameters.values() if isinstance(p, DTensor)]
    if not meshes:
        return values
    device = meshes[0].device_type
    summed = torch.tensor(list(values.values()), dtype=torch.float64, device=device)
    for group in meshes[0].get_all_groups():
        torch.distributed.all_reduce(summed, group=group)
    return dict(zip(values, summed.tolist(), strict=True))


def local(tensor: torch.Tensor) -> torch.Tensor:
    """Flat: this process's shard of a tensor, or the tensor itself."""
    own = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return own.detach().reshape(-1)


@contextmanager
def _arriving(parameters: Mapping[str, nn.Parameter], visitor: Visitor) -> Iterator[None]:
    def hook_for(name: str) -> Callable[[torch.Tensor], None]:
        def arrived(parameter: Any) -> None:
            gradient, parameter.grad = parameter.grad, None
            visitor(name, parameter, gradient)

        return arrived

    handles = [p.register_post_accumulate_grad_hook(hook_for(n)) for n, p in parameters.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def dot_of_change(old: torch.Tensor, new: torch.Tensor, gradient: torch.Tensor) -> float:
    """sum((new - old) * gradient), in float64."""
    pieces = zip(*(local(t).split(CHUNK) for t in (old, new, gradient)), strict=True)
    return math.fsum(float((b.double() - a.double()) @ g.double()) for a, b, g in pieces)


def require_batches(seen: int) -> None:
    """Raise ValueError if there was no batch."""
    if not seen:
        raise ValueError("there is no batch to measure on: pass at least one")
