"""The probe: what each tensor's own update would do to the loss, without a trace in the run.

`I[k] = -sum(delta_w * dL/dw)` over the elements of tensor k (section 3.1 of the paper): how much
the update that the optimizer would make now lowers the loss, to first order.

Gradients are not collected.  As each one arrives, a twin of the user's optimizer steps a copy of
that one tensor, with a copy of its state; the product of update and gradient is summed, and all
three are freed.  So any optimizer works that updates one tensor at a time, and the extra memory is
a few times the largest tensor.

The paper's own form takes two passes: all tensors are updated, and the gradients are those at the
new weights on the same batch (`metric="two_pass"`); it needs a second copy of the probed weights.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import astuple

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from greentrainer.importance.gradients import (
    CHUNK,
    Visitor,
    dot_of_change,
    groups_of,
    probed,
    require_batches,
    visit,
    whole_tensors,
)
from greentrainer.importance.update import updated_weights
from greentrainer.importance.worth import Judge, spaced, worth_of
from greentrainer.model import preserved
from greentrainer.types import Batch, LossFn, Tail, TensorStatistics


def measure_importance(
    model: nn.Module,
    batches: Iterable[Batch],
    optimizer: torch.optim.Optimizer,
    loss_fn: LossFn | None = None,
    tensors: Iterable[str] | None = None,
    *,
    metric: str = "first_order",
    judged_by: Iterable[Batch] | None = None,
) -> dict[str, float]:
    """Importance `I[k]` of each tensor, in units of the loss, averaged over the batches.

    batches: as in training, each with tensors of (rows, length).
    loss_fn: `loss_fn(model, batch)`; by default `model(**batch).loss`.
    tensors: names to probe; by default all that require a gradient.  One that the loss does not
        depend on gets 0.
    metric: "first_order" at the current weights, or the paper's "two_pass".
    judged_by: batches of other rows.  The updates made of `batches` are then judged by the mean
        gradient of these, and count without what they would be of no gradient at all (`worth.py`).
        None, as in the paper: each by its own rows.

    Weights, gradients, optimizer state, buffers, modes and random streams are left bit-identical.
    Of a model cut into shards by FSDP2 the importance is that of whole tensors; all processes
    measure together, in one pass.  Raises ValueError if there is no batch or nothing to probe, if a
    name is unknown or held by no param group, if a loss is not one finite number, or if the
    optimizer needs a closure or is a wrapper around another one.
    """
    if metric not in ("first_order", "two_pass"):
        raise ValueError(f"metric is {metric!r}: choose first_order or two_pass")
    if isinstance(optimizer, torch.optim.LBFGS):
        raise ValueError("LBFGS steps all tensors at once through a closure: use another one")
    if "param_groups" not in vars(optimizer):  # its twin would share state with the wrapped one
        raise ValueError(f"{type(optimizer).__name__} wraps another optimizer: pass that one")
    parameters = probed(model, tensors)
    groups = groups_of(optimizer, parameters)
    if judged_by is not None:
        if metric != "first_order":
            raise ValueError(f"{metric} judges by its own rows: judged_by is for first_order")
        judge_by = Judge(model, judged_by, loss_fn, parameters)
        return worth_of(model, batches, optimizer, loss_fn, parameters, judge_by)
    if metric == "two_pass" and any(isinstance(p, DTensor) for p in parameters.values()):
        raise ValueError("two_pass swaps weights, which shards do not allow: use first_order")
    total = dict.fromkeys(parameters, 0.0)

    def first_order(name: str, parameter: nn.Parameter, gradient: torch.Tensor) -> None:
        updated = updated_weights(optimizer, groups[name], parameter, gradient)
        total[name] -= dot_of_change(parameter, updated, gradient)

    def two_pass(batch: Batch, number: int) -> None:
        new: dict[str, torch.Tensor] = {}

        def update(name: str, parameter: nn.Parameter, gradient: torch.Tensor) -> None:
            new[name] = updated_weights(optimizer, groups[name], parameter, gradient)

        visit(model, batch, number, loss_fn, parameters, update)
        with _weights(parameters, new) as old:

            def judge(name: str, parameter: nn.Parameter, gradient: torch.Tensor) -> None:
                if name in old:
                    total[name] -= dot_of_change(old[name], parameter, gradient)

            visit(model, batch, number, loss_fn, parameters, judge)

    seen = 0
    with preserved(model, parameters.keys()):
        for seen, batch in enumerate(batches, 1):
            if metric == "two_pass":
                two_pass(batch, seen)
            else:
                visit(model, batch, seen, loss_fn, parameters, first_order)
    require_batches(seen)
    return {name: value / seen for name, value in whole_tensors(total, parameters).items()}


def measure_tails(
    model: nn.Module,
    batches: Iterable[Batch],
    optimizer: torch.optim.Optimizer,
    loss_fn: LossFn | None,
    passes: Mapping[Tail, Sequence[str]],
    at: Callable[[Tail], AbstractContextManager[None]],
) -> dict[Tail, dict[str, float]]:
    """Importance of each tensor with gradient through tails of some lengths.

    `I[k](tail) = -sum(delta_w(tail) * dL/dw)`: the update made from the gradient of the tail's
    positions, judged by the whole gradient.

    passes: for each tail, and first for the whole (None), names of tensors.  All must be in the
        whole's.
    at: makes the context in which gradient passes through such a tail.

    One pass gives the whole gradient and one each those of the tails.  Of the whole gradient of a
    tensor at most `worth.REMEMBERED` elements, evenly spaced, are remembered; of a larger tensor
    the sum is estimated from these.  Leaves no trace either.  Raises ValueError as
    `measure_importance`.
    """
    whole = probed(model, passes[None])
    groups = groups_of(optimizer, whole)
    total = {tail: dict.fromkeys(names, 0.0) for tail, names in passes.items()}
    remembered: dict[str, torch.Tensor] = {}

    def judge(name: str, parameter: nn.Parameter, gradient: torch.Tensor) -> None:
        remembered[name] = spaced(gradient).clone()
        updated = updated_weights(optimizer, groups[name], parameter, gradient)
        total[None][name] -= dot_of_change(parameter, updated, gradient)

    def of(tail: Tail) -> Visitor:
        def visit(name: str, parameter: nn.Parameter, gradient: torch.Tensor) -> None:
            if name in remembered:
                updated = updated_weights(optimizer, groups[name], parameter, gradient)
                known = remembered[name]
                share = known.numel() / parameter.numel()
                change = dot_of_change(spaced(parameter), spaced(updated), known)
                total[tail][name] -= change / share

        return visit

    seen = 0
    for seen, batch in enumerate(batches, 1):
        for tail, names in passes.items():
            own = {name: whole[name] for name in names}
            with preserved(model, own.keys()), at(tail):
                visit(model, batch, seen, loss_fn, own, judge if tail is None else of(tail))
        remembered.clear()
    require_batches(seen)
    return {tail: {n: value / seen for n, value in own.items()} for tail, own in total.items()}


def measure_statistics(
    model: nn.Module,
    batches: Iterable[Batch],
    loss_fn: LossFn | None = None,
    tensors: Iterable[str] | None = None,
) -> dict[str, TensorStatistics]:
    """What the control selectors score by, averaged over the batches; leaves no trace either."""
    parameters = probed(model, tensors)
    sums = {name: [0.0] * 4 for name in parameters}

    def note(name: str, parameter: nn.Parameter, gradient: torch.Tensor) -> None:
        values = astuple(_statistics(parameter, gradient))
        sums[name] = [total + value for total, value in zip(sums[name], values, strict=True)]

    seen = 0
    with preserved(model, parameters.keys()):
        for seen, batch in enumerate(batches, 1):
            visit(model, batch, seen, loss_fn, parameters, note)
    require_batches(seen)
    return {name: TensorStatistics(*(v / seen for v in values)) for name, values in sums.items()}


@contextmanager
def _weights(
    parameters: Mapping[str, nn.Parameter], new: Mapping[str, torch.Tensor]
) -> Iterator[dict[str, torch.Tensor]]:
    """The model has the new weights in here; gives the old ones, and puts them back."""
    old = {name: parameters[name].data for name in new}
    try:
        for name, weight in new.items():
            parameters[name].data = weight
        yield old
    finally:
        for name, weight in old.items():
            parameters[name].data = weight


@torch.no_grad()
def _statistics(parameter: torch.Tensor, gradient: torch.Tensor) -> TensorStatistics:
    pieces: Sequence[tuple[torch.Tensor, torch.Tensor]] = list(
        zip(*(t.detach().reshape(-1).split(CHUNK) for t in (parameter, gradient)), strict=True)
    )
    squared = math.fsum(float(g.double() @ g.double()) for _, g in pieces)
    weight = math.fsum(float(w.double() @ w.double()) for w, _ in pieces)
    snip = math.fsum(float(w.double().abs() @ g.double().abs()) for w, g in pieces)
    return TensorStatistics(math.sqrt(squared), math.sqrt(weight), squared, snip)
