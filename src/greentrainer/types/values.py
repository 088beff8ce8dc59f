"""Small values that stages hand on: importance, a selection, statistics of tensors.  No torch."""

from collections.abc import Callable, Iterator, Mapping
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


def rows_in(batch: Batch) -> int:
    """How many rows a batch has, by the first of its tensors; 0 for what is no batch of such."""
    values = batch.values() if isinstance(batch, Mapping) else ()
    shapes: Iterator[Any] = (getattr(value, "shape", ()) for value in values)
    return next((shape[0] for shape in shapes if len(shape)), 0)


def taken(batch: Batch, rows: slice | list[int]) -> Batch:
    """These rows of a batch; what is not there for each row stays as it is."""
    count = rows_in(batch)

    def part(value: Any) -> Any:
        if isinstance(value, list) and len(value) == count:
            return value[rows] if isinstance(rows, slice) else [value[row] for row in rows]
        shape = getattr(value, "shape", None)
        return value[rows] if shape and shape[0] == count else value

    return {name: part(value) for name, value in batch.items()}


@dataclass(frozen=True)
class Selection:
    """Tensors chosen for training, and what that choice is worth and costs: the paper's m.

    names: in the order of `CostGraph.tensors`.
    importance: sum of I[k] over `names` (the value that the selector maximised).
    backward_flops: exact cost in FLOPs on the graph it was chosen for, at most `backward_budget`.
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
