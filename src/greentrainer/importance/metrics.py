"""By what tensors are chosen: the metrics by name, each a way to give every tensor a value.

The paper's importance is one, first order or in two passes; the scores that it is compared with are
others.  They differ in what they do with a probe's batches and in how many passes that takes; to
the engine they are alike.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from greentrainer.importance.measure import measure_importance, measure_statistics
from greentrainer.select import CONTROLS, scores
from greentrainer.types import Batch, Importance, LossFn

Measure = Callable[
    [nn.Module, Sequence[Batch], torch.optim.Optimizer, LossFn | None, Iterable[str]], Importance
]
"""Model, batches, optimizer, loss and names of tensors -> a value for each, leaving no trace."""


@dataclass
class Metric:
    """A way to value tensors.

    measure: does it.  passes: forward and backward passes that the next probe makes of each batch.
    """

    measure: Measure
    passes: int = 1


def _by_statistics(
    control: str,
    model: nn.Module,
    batches: Sequence[Batch],
    _optimizer: torch.optim.Optimizer,
    loss_fn: LossFn | None,
    names: Iterable[str],
) -> Importance:
    return scores(control, measure_statistics(model, batches, loss_fn, names))


METRICS: dict[str, Metric] = {
    "first_order": Metric(measure_importance),
    "two_pass": Metric(partial(measure_importance, metric="two_pass"), passes=2),
    **{name: Metric(partial(_by_statistics, name)) for name in CONTROLS},
}


def metric_named(name: str) -> Metric:
    """The metric of this name.  Raises ValueError for an unknown one."""
    if name not in METRICS:
        raise ValueError(f"metric is {name!r}: choose one of {', '.join(METRICS)}")
    return METRICS[name]
