"""A thin training loop: batches in, a trained model and its books out.

Full fine-tuning and GreenTrainer run through the same loop; the only difference is the engine's
plan.  (At rho 1 the engine trains every tensor and never probes.)
"""

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from greentrainer.engine import AdaptiveBackprop
from greentrainer.interrupt import StopRequest
from greentrainer.types import Batch

Report = Callable[[int, float, AdaptiveBackprop], None]
"""Called after each batch with its number (from 1), its loss and the engine."""


@dataclass(frozen=True)
class Plan:
    """What to train on, and how.

    epochs: batches of each epoch, in order.
    learning_rate: peak, reached after `warmup` of the steps and then falling linearly to 0.
    probe_batches: how many batches importance is measured on at each selection.
    selections: how many selections over the run, evenly spaced.
    clip: largest norm of the gradient over all trained tensors.
    """

    epochs: Sequence[Sequence[Batch]]
    rho: float
    learning_rate: float
    weight_decay: float = 0.01
    warmup: float = 0.05
    probe_batches: int = 2
    selections: int = 2
    clip: float = 1.0
    seed: int = 0

    @property
    def total_batches(self) -> int:
        """Training batches of the whole run."""
        return sum(len(epoch) for epoch in self.epochs)


@dataclass
class Outcome:
    """What came of a run: the loss of every batch, of `planned` ones unless interrupted."""

    planned: int
    losses: list[float] = field(default_factory=list)
    interrupted: bool = False


def make_optimizer(model: nn.Module, plan: Plan) -> torch.optim.Optimizer:
    """Fused AdamW over all trainable parameters; no weight decay on vectors."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim > 1], "weight_decay": plan.weight_decay},
        {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=plan.learning_rate, fused=True)


def make_scheduler(optimizer: torch.optim.Optimizer, plan: Plan) -> Any:
    """Linear warm-up, then linear decay to zero."""
    total = max(1, plan.total_batches)
    rising = max(1, round(plan.warmup * total))

    def scale(step: int) -> float:
        return min((step + 1) / rising, (total - step) / max(1, total - rising + 1))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, scale)


def fit(
    model: nn.Module,
    plan: Plan,
    report: Report = lambda _batch, _loss, _engine: None,
    stopping: Callable[[], None] = lambda: None,
) -> tuple[Outcome, AdaptiveBackprop]:
    """Train `model` in place within `plan.rho` of full fine-tuning's FLOPs.

    Stops at Ctrl-C after the batch in hand, with the model whole; `stopping` is called when it is
    asked to.  Raises ValueError for an empty plan, an infeasible rho, or a loss that is not finite.
    """
    total = plan.total_batches
    if total == 0:
        raise ValueError("there is no batch to train on")
    torch.manual_seed(plan.seed)
    model.train()
    optimizer = make_optimizer(model, plan)
    every = math.ceil(total / min(plan.selections, total))
    first = next(batch for epoch in plan.epochs for batch in epoch)
    engine = AdaptiveBackprop(
        model, optimizer, first, rho=plan.rho, total_batches=total, every=every
    )
    outcome = Outcome(total)
    with engine, StopRequest(stopping) as stop:
        for loss in _steps(model, optimizer, engine, plan):
            outcome.losses.append(loss)
            report(len(outcome.losses), loss, engine)
            if stop.made and len(outcome.losses) < total:
                outcome.interrupted = True
                break
    return outcome, engine


def _steps(
    model: nn.Module, optimizer: torch.optim.Optimizer, engine: AdaptiveBackprop, plan: Plan
) -> Iterator[float]:
    """One optimizer step a batch; yields the loss."""
    scheduler = make_scheduler(optimizer, plan)
    pool = [batch for epoch in plan.epochs for batch in epoch]
    chooser = random.Random(plan.seed)
    for number, batch in enumerate(pool, 1):
        if engine.due:
            engine.reselect(chooser.sample(pool, min(plan.probe_batches, len(pool))))
        loss = engine.loss(batch)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise ValueError(
                f"the loss of batch {number} is {value}: lower the learning rate "
                f"({plan.learning_rate:g})"
            )
        loss.backward()
        nn.utils.clip_grad_norm_([p for p in model.parameters() if p.grad is not None], plan.clip)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        yield value
