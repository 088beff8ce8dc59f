"""A plain training loop under an engine, and the FLOPs that a counter sees in it."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from greentrainer import AdaptiveBackprop
from greentrainer.cost import flop_counter

Meddle = Callable[[int], None]
"""Called with the step's number, from 0."""


def epochs_of(batches: Sequence[Any], epochs: int) -> list[Any]:
    """The batches so many times, each time in another order."""
    count = len(batches)
    return [batches[(step * 3 + step // count) % count] for step in range(epochs * count)]


def run_through(
    engine: AdaptiveBackprop,
    batches: Iterable[Any],
    probe: Any = None,
    before: Meddle = lambda _step: None,
    after: Meddle = lambda _step: None,
) -> tuple[list[float], int]:
    """Train a step on each batch; returns the losses, and the FLOPs of training.

    probe: what selections are made by; the batch at hand when None.
    before, after: called before a step's forward pass, and when the optimizer is done.
    """
    losses, counted = [], 0
    for step, batch in enumerate(batches):
        if engine.due:
            engine.reselect([batch if probe is None else probe])
        before(step)
        engine.graphs.of_batch(batch)  # traced outside of what is counted
        with flop_counter() as count:
            loss = engine.loss(batch)
            loss.backward()
        counted += count.get_total_flops()
        engine.optimizer.step()
        engine.optimizer.zero_grad()
        losses.append(loss.item())
        after(step)
    return losses, counted
