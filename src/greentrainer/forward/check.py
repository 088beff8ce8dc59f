"""Whether a shortened forward pass gives the loss that the whole one gives, on a small piece."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import nn

from greentrainer.snapshot import preserved
from greentrainer.types import Batch, LossFn, loss_of

ROWS, COLUMNS = 2, 32
"""Of the piece."""
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-8}
"""Relative; of other types `COARSE`."""
COARSE = 5e-3


def agrees(
    model: nn.Module,
    batch: Batch,
    loss_fn: LossFn | None,
    shortened: Callable[[Batch], AbstractContextManager[None]],
) -> str | None:
    """Why a model cannot be used with `shortened` around its loss; None if the losses are equal."""
    small = piece(batch)
    with preserved(model, ()), evaluating(model), torch.no_grad():
        try:
            plain = loss_of(model, small, loss_fn)
        except Exception:  # what belongs to rows or columns is not cut in all kinds of batches
            small = batch
            plain = loss_of(model, small, loss_fn)
        try:
            with shortened(small):
                other = loss_of(model, small, loss_fn)
        except Exception as error:  # whatever a model makes of what it does not expect
            return f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
    wanted, got = float(plain), float(other)
    if abs(got - wanted) > TOLERANCE.get(_dtype(model), COARSE) * max(abs(wanted), 1e-3):
        return f"the loss of a piece of a batch is {got:.6g} instead of {wanted:.6g}"
    return None


def piece(batch: Batch) -> Batch:
    """A few columns of a few rows of a batch, with labels and without in it where it has both."""
    labels = batch.get("labels") if isinstance(batch, Mapping) else None
    if not isinstance(labels, torch.Tensor) or labels.dim() != 2:
        return batch
    size = labels.shape[0]
    start = max(0, int((labels[:ROWS] != -100).any(0).int().argmax()) - COLUMNS // 4)

    def cut(value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or value.dim() < 1 or value.shape[0] != size:
            return value
        if value.dim() == 1:
            return value[:ROWS]
        along = value.shape[1] == labels.shape[1]
        begin = start if along else 0
        return value[:ROWS, begin : begin + COLUMNS] if along else value[:ROWS]

    small = {name: cut(value) for name, value in batch.items()}
    return small if bool((small["labels"][:, 1:] != -100).any()) else batch


def _dtype(model: nn.Module) -> torch.dtype:
    autocast = torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda")
    if autocast or hasattr(model, "_original_forward"):  # accelerate's, around a mixed precision
        return torch.bfloat16
    return next(model.parameters()).dtype


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """All modules in evaluation mode; each gets its own back."""
    training = [module for module in model.modules() if module.training]
    try:
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True
