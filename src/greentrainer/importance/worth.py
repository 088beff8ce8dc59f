"""Worth: what updates are worth to rows that they have not seen.

    I[k](tail) = -sum(delta_w[k](tail) * g[k])

`delta_w` comes from the gradient of some rows through the positions of a tail, g is the whole
gradient of *other* rows: of their own rows updates are worth more than they will be worth to
anybody else, and the shorter the tail the more so.  The sum over the tensors that a step trains is
what the step is worth, and compares unlike steps: `engine/alternatives.py` divides it by cost.

What counts of an update is what the new gradient adds to it.  With moments from earlier steps most
of the next update is past gradient, which is the same whatever the next step trains; so the update
that the optimizer would make of no gradient at all is taken off.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import nn

from greentrainer.importance.gradients import (
    dot_of_change,
    groups_of,
    local,
    probed,
    require_batches,
    visit,
    whole_tensors,
)
from greentrainer.importance.update import updated_weights
from greentrainer.model import preserved
from greentrainer.types import Batch, LossFn, Tail

REMEMBERED = 1 << 18
"""Elements of a tensor's gradient that are remembered, to judge updates by."""

Optimizer = torch.optim.Optimizer
Values = dict[Tail, dict[str, float]]


@dataclass(frozen=True)
class Pair:
    """Rows to make updates of, and other rows to judge these by."""

    made_of: Batch
    judged_by: Batch


class Judge:
    """The whole gradient of some rows, the mean over their batches, to judge updates by.

    Of a tensor at most `REMEMBERED` elements, evenly spaced, are remembered; of a larger one a sum
    is estimated from these.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Iterable[Batch],
        loss_fn: LossFn | None,
        parameters: Mapping[str, nn.Parameter],
    ) -> None:
        self._sums: dict[str, torch.Tensor] = {}
        self._batches = 0
        with preserved(model, parameters.keys()):
            for self._batches, batch in enumerate(batches, 1):
                visit(model, batch, self._batches, loss_fn, parameters, self._remember)
        require_batches(self._batches)

    def _remember(self, name: str, _parameter: nn.Parameter, gradient: torch.Tensor) -> None:
        found = spaced(gradient)
        self._sums[name] = self._sums[name] + found if name in self._sums else found.clone()

    def value(self, name: str, old: torch.Tensor, new: torch.Tensor) -> float:
        """How much a tensor's change lowers the loss of these rows, to first order."""
        if name not in self._sums:
            return 0.0
        known = self._sums[name]
        scale = local(old).numel() / (known.numel() * self._batches)
        return -scale * dot_of_change(spaced(old), spaced(new), known)


def spaced(tensor: torch.Tensor) -> torch.Tensor:
    """At most `REMEMBERED` elements of a tensor, of a sharded one of this process's part."""
    flat = local(tensor)
    return flat[:: max(1, -(-flat.numel() // REMEMBERED))]


def worth_of(
    model: nn.Module,
    batches: Iterable[Batch],
    optimizer: Optimizer,
    loss_fn: LossFn | None,
    parameters: Mapping[str, nn.Parameter],
    judge: Judge,
) -> dict[str, float]:
    """`I[k]` of each parameter: the mean over the batches that updates are made of."""
    groups = groups_of(optimizer, parameters)
    total = dict.fromkeys(parameters, 0.0)

    def visited(name: str, parameter: nn.Parameter, gradient: torch.Tensor) -> None:
        new = updated_weights(optimizer, groups[name], parameter, gradient)
        idle = updated_weights(optimizer, groups[name], parameter, torch.zeros_like(gradient))
        total[name] += judge.value(name, idle, new)

    seen = 0
    with preserved(model, parameters.keys()):
        for seen, batch in enumerate(batches, 1):
            visit(model, batch, seen, loss_fn, parameters, visited)
    require_batches(seen)
    return {name: value / seen for name, value in whole_tensors(total, parameters).items()}


def measure_worth(
    model: nn.Module,
    pairs: Sequence[Pair],
    optimizer: Optimizer,
    loss_fn: LossFn | None,
    passes: Mapping[Tail, Sequence[str]],
    at: Callable[[Tail], AbstractContextManager[None]],
    judges: list[Judge] | None = None,
) -> list[Values]:
    """For each pair and each tail the worth `I[k](tail)` of each tensor named there.

    passes: for each tail the names of tensors.
    at: makes the context in which gradient passes through such a tail.
    judges: those of the pairs, from an earlier call; new ones are put into the list.

    A pass of each pair gives the gradient that judges, one more each tail's.  Leaves no trace, as
    `measure_importance`, and raises ValueError as that does.
    """
    names = dict.fromkeys(name for own in passes.values() for name in own)
    whole = probed(model, names)
    judges = [] if judges is None else judges
    found: list[Values] = []
    for number, pair in enumerate(pairs):
        if number == len(judges):
            with at(None):
                judges.append(Judge(model, [pair.judged_by], loss_fn, whole))
        values: Values = {}
        for tail, own in passes.items():
            with at(tail):
                values[tail] = worth_of(
                    model,
                    [pair.made_of],
                    optimizer,
                    loss_fn,
                    {name: whole[name] for name in own},
                    judges[number],
                )
        found.append(values)
    return found
