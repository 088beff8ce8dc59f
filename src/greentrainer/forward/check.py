"""Whether a shortened forward pass gives the loss that the whole one gives, on a small piece."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from greentrainer.forward.packed import Segments, begins_anew, opened, segments_of
from greentrainer.model import preserved
from greentrainer.types import Batch, LossFn, loss_of

ROWS, COLUMNS = 2, 32
"""Of the piece."""
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-8}
"""Relative; of other types `COARSE`."""
COARSE = 2e-2
"""In half precision the order of sums alone moves the loss of a few tokens by a hundredth."""
NEAR, FAR = 1e-3, 5e-2
"""By how much the logits of packed examples may differ on average, as a share of their spread; FAR
in half precision."""
HANDED = 1e-4
"""By how much they may change with the example before, as such a share: experts that work on tokens
together do so in another order."""

Shortened = Callable[[Batch], AbstractContextManager[None]]
"""Makes the context in which the loss of a batch is computed by a shortened pass."""


@dataclass(frozen=True)
class Losses:
    """Of one batch, by the whole pass and by a shortened one.

    failure: why the second cannot be told.  tolerance: relative.
    """

    whole: float
    shortened: float
    tolerance: float
    failure: str | None = None

    @property
    def gap(self) -> float:
        """Their relative difference; infinite if it cannot be told."""
        if self.failure:
            return math.inf
        return abs(self.shortened - self.whole) / max(abs(self.whole), 1e-3)

    @property
    def reason(self) -> str | None:
        """Why a model cannot be used so; None if the losses are equal."""
        if self.failure or self.gap <= self.tolerance:
            return self.failure
        got, wanted = f"{self.shortened:.6g}", f"{self.whole:.6g}"
        return f"the loss of a piece of a batch is {got} instead of {wanted}"


def compare(model: nn.Module, batch: Batch, loss_fn: LossFn | None, shortened: Shortened) -> Losses:
    """The losses of a piece of a batch, in evaluation mode."""
    small = piece(batch)
    tolerance = TOLERANCE.get(_dtype(model), COARSE)
    with preserved(model, ()), evaluating(model), torch.no_grad():
        try:
            plain = loss_of(model, small, loss_fn)
        except Exception:  # what belongs to rows or columns is not cut in all kinds of batches
            small = batch
            try:
                plain = loss_of(model, small, loss_fn)
            except Exception as error:  # a piece too, or a batch that no step can be made with
                return Losses(0.0, 0.0, tolerance, _said(error))
        try:
            with shortened(small):
                other = loss_of(model, small, loss_fn)
        except Exception as error:  # whatever a model makes of what it does not expect
            return Losses(float(plain), 0.0, tolerance, _said(error))
    return Losses(float(plain), float(other), tolerance)


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"


def mixing(model: nn.Module, batch: Batch) -> str | None:
    """Why examples that share rows are not to a model what they are alone; None if they are.

    Each must have the logits that it has alone, and keep them whatever example comes before it: in
    a model that was not trained a recurrence hands on so little that only this shows it.

    batch: a packed one, small, tried in evaluation mode.
    """
    segments = segments_of(batch)
    assert segments is not None
    changed = {**batch, "input_ids": _first_changed(batch["input_ids"], segments)}
    with preserved(model, ()), evaluating(model), torch.no_grad():
        alone = model(**opened(batch, segments)).logits
        try:
            found, other = (segments.of(model(**one).logits) for one in (batch, changed))
        except Exception as error:  # whatever a model makes of what it does not expect
            return _said(error)
    if found.shape != alone.shape:
        return "the model adds positions of its own"
    real = segments.real().to(alone.device)
    later = real & (segments.begin > 0).to(alone.device)[:, None]
    spread = float(alone[real].float().std(0).mean())
    gap = float((found - alone)[real].float().abs().mean()) / spread
    handed = float((found - other)[later].float().abs().max()) / spread
    fine = _dtype(model) in TOLERANCE
    if gap <= (NEAR if fine else FAR) and handed <= (HANDED if fine else FAR):
        return None
    name = type(model).__name__
    return f"to {name} examples that share a row are not what they are alone"


def _first_changed(ids: torch.Tensor, segments: Segments) -> torch.Tensor:
    """(B, T), with other tokens in the first example of each row."""
    first = segments.begin == 0
    made = ids.clone()
    for row, end in zip(segments.row[first].tolist(), segments.end[first].tolist(), strict=True):
        made[row, :end] = ids[row].roll(1)[:end]
    return made


def piece(batch: Batch) -> Batch:
    """A few columns of a few rows of a batch, with labels and without in it where it has both.

    All columns where rows hold several examples: so that one begins in it.
    """
    labels = batch.get("labels") if isinstance(batch, Mapping) else None
    if not isinstance(labels, torch.Tensor) or labels.dim() != 2:
        return batch
    size = labels.shape[0]
    start = max(0, int((labels[:ROWS] != -100).any(0).int().argmax()) - COLUMNS // 4)
    columns = COLUMNS
    if begins_anew(batch) is not None:
        start, columns = 0, labels.shape[1]

    def cut(value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or value.dim() < 1 or value.shape[0] != size:
            return value
        if value.dim() == 1:
            return value[:ROWS]
        along = value.shape[1] == labels.shape[1]
        begin = start if along else 0
        return value[:ROWS, begin : begin + columns] if along else value[:ROWS]

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
