"""Small values that stages hand on: importance, a selection, statistics of tensors.  No torch."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Batch = Any
LossFn = Callable[[Any, Batch], Any]
Importance = Mapping[str, float]
IGNORED = -100
"""Label of a position that the loss does not cover (PyTorch's convention)."""
Tail = int | None
"""Positions of each prompt, counted back from the completion, that gradient passes through; all
when None."""

Unit = Literal["rho", "hours", "kwh", "co2_grams", "flops"]
"""What a budget is given in: a share of full fine-tuning, or so much of something."""


def loss_of(model: Any, batch: Batch, loss_fn: LossFn | None = None) -> Any:
    """The scalar loss of one batch: `loss_fn(model, batch)`, or `model(**batch).loss`."""
    if loss_fn is not None:
        return loss_fn(model, batch)
    if not isinstance(batch, Mapping):
        raise ValueError(
            f"a batch of type {type(batch).__name__} is no mapping: pass loss_fn(model, batch)"
        )
    loss = model(**batch).loss
    if loss is None:
        raise ValueError("the model returned no loss: put 'labels' in the batch, or pass loss_fn")
    return loss


@dataclass(frozen=True)
class Selection:
    """Tensors chosen for training, and what that choice is worth and costs.

    names: in the order of `CostGraph.tensors`.
    importance: sum of I[k] over `names` (the value that the selector maximised).
    backward_flops: exact cost on the graph it was chosen for, at most `backward_budget`.
    tail: positions of each prompt that gradient passes through, counted back from the completion;
        all when None.
    part: what is read of the positions before these, one of `PARTS`; all when None.
    """

    names: tuple[str, ...]
    importance: float
    backward_flops: int
    backward_budget: float
    tail: Tail = None
    part: str | None = None


@dataclass(frozen=True)
class TensorStatistics:
    """What control selectors score a tensor by, each a mean over batches.

    gradient_norm, weight_norm: L2 norms.  squared_gradient: sum of g^2 (the trace of the empirical
    Fisher matrix).  gradient_weight: sum of |g w| (SNIP).
    """

    gradient_norm: float
    weight_norm: float
    squared_gradient: float
    gradient_weight: float
