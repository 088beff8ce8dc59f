"""Seconds that training takes on one device, told from what a batch executes.

A `Clock` has a rate for each kind of work.  It prices a cost graph: the same graph, its costs in
nanoseconds in place of FLOPs, so that everything that reads costs can read seconds as well.

====================  ==========================================================================
forward               seconds a FLOP of the forward pass
weight                seconds a FLOP of gradients of weights (the paper's ``t_dw``)
activation            seconds a FLOP of gradients passed on (``t_dy``)
update                seconds an element that the optimizer updates, gradient clipping included
plain                 seconds a FLOP of plain full fine-tuning, its forward and backward passes
====================  ==========================================================================
"""

import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import numpy as np

from greentrainer.records import write_json
from greentrainer.types import CostGraph

NANO = 10**9


@dataclass(frozen=True)
class Work:
    """What a batch executes: FLOPs by kind, and elements updated."""

    forward: int
    weight: int
    activation: int
    elements: int


def work_of(graph: CostGraph, names: Iterable[str] | None = None) -> Work:
    """The work of a batch of this graph that trains `names` (all when None)."""
    chosen = set(graph.leaves if names is None else names)
    own = graph.variant(chosen)
    active = own.active_nodes(chosen)
    kinds = [0, 0]
    for owner, cost, on in zip(own.owners, own.costs, active, strict=True):
        if on:
            kinds[owner >= 0] += cost
    elements = sum(graph.sizes[name] for name in chosen)
    return Work(graph.forward_flops, kinds[True], kinds[False], elements)


@dataclass(frozen=True)
class TimedPass:
    """A measured pass: its work, and the seconds forward and backward."""

    work: Work
    forward_seconds: float
    backward_seconds: float


@dataclass(frozen=True)
class Clock:
    """Rates in seconds.  device: what they were measured on.

    deviation: of the measured passes from these rates, as a share; the median.
    tokens: padded ones of the batch that was timed; a rate holds for such sizes.
    watts: mean power while they were measured.
    """

    forward: float
    weight: float
    activation: float
    update: float
    plain: float
    device: str = ""
    deviation: float = 0.0
    tokens: int = 0
    watts: float = 0.0

    def suits(self, tokens: int) -> bool:
        """Whether it was set by a batch of about this size: at most twice or half as large."""
        return self.tokens / 2 <= tokens <= 2 * self.tokens

    def of_work(self, work: Work) -> float:
        """Seconds of a batch of this work."""
        return self.passes(work) + self.update * work.elements

    def passes(self, work: Work) -> float:
        """Seconds of its forward and backward pass."""
        backward = self.weight * work.weight + self.activation * work.activation
        return self.forward * work.forward + backward

    def seconds(self, graph: CostGraph, names: Iterable[str] | None = None) -> float:
        """Seconds of a batch of this graph that trains `names` (all when None)."""
        return self.of_work(work_of(graph, names))

    def price(self, graph: CostGraph) -> CostGraph:
        """The graph with costs in nanoseconds."""
        elements = {node: graph.sizes[name] for name, node in graph.leaves.items()}
        costs = [
            (self.activation if owner < 0 else self.weight) * flops
            + self.update * elements.get(node, 0)
            for node, (owner, flops) in enumerate(zip(graph.owners, graph.costs, strict=True))
        ]
        ahead = [replace(one, flops=round(NANO * self.forward * one.flops)) for one in graph.stages]
        return replace(
            graph,
            costs=tuple(round(NANO * seconds) for seconds in costs),
            forward_flops=round(NANO * self.forward * graph.forward_flops),
            plain_flops=round(NANO * self.full(graph.full_flops, 1, sum(graph.sizes.values()))),
            stages=tuple(ahead),
            variants=tuple((mask, self.price(other)) for mask, other in graph.variants),
        )

    def per_batch(self, batches: int) -> "Clock":
        """The clock of a batch where the optimizer steps once in so many."""
        return replace(self, update=self.update / batches)

    def full(self, flops: float, batches: int, elements: int) -> float:
        """Of plain full fine-tuning of batches of so many FLOPs in all, and so many elements."""
        return self.plain * flops + self.update * elements * batches

    def save(self, path: Path) -> None:
        """Write it as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, asdict(self))


def slowest(clocks: Sequence[Clock]) -> Clock:
    """Of processes that wait for one another: the lowest pace of each kind, and all their watts."""
    rates = ("forward", "weight", "activation", "update", "plain", "deviation")
    own = {name: max(getattr(clock, name) for clock in clocks) for name in rates}
    return replace(clocks[0], **own, watts=sum(clock.watts for clock in clocks))


def load_clock(path: Path) -> Clock:
    """Read a saved clock.  Raises ValueError for a file that holds none."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return Clock(**{field.name: values[field.name] for field in fields(Clock)})
    except (OSError, ValueError, KeyError, TypeError):
        raise ValueError(f"{path} holds no calibration: run plan --calibrate again") from None


def fit(passes: Sequence[TimedPass], whole: CostGraph, update: float, device: str) -> Clock:
    """The clock that fits measured passes best: least squares of relative deviations, none below 0.

    whole: of a plain batch.  update: measured apart, in seconds.  One pass alone does not tell
    gradients of weights from others: they are taken to go as fast.
    """
    forward = _rates([[p.work.forward] for p in passes], [p.forward_seconds for p in passes])
    behind = [[p.work.weight, p.work.activation] for p in passes]
    if len(passes) == 1:
        behind = [[sum(behind[0])]]
    backward = _rates(behind, [p.backward_seconds for p in passes])
    clock = Clock(forward[0], backward[0], backward[-1], update, 0.0, device)
    work = work_of(whole)
    plain = clock.passes(work) / (work.forward + work.weight + work.activation)
    told = [clock.passes(p.work) for p in passes]
    real = [p.forward_seconds + p.backward_seconds for p in passes]
    off = [abs(a / b - 1) for a, b in zip(told, real, strict=True)]
    return replace(clock, plain=plain, deviation=statistics.median(off))


def _rates(features: Sequence[Sequence[float]], seconds: Sequence[float]) -> list[float]:
    """Rates that turn features into seconds; one that would be negative is 0."""
    x = np.array(features, dtype=np.float64) / np.array(seconds)[:, None]
    kept = list(range(x.shape[1]))
    while True:
        found = np.linalg.lstsq(x[:, kept], np.ones(len(x)), rcond=None)[0]
        if len(kept) == 1 or (found > 0).all():
            break
        kept.pop(int(found.argmin()))
    rates = [0.0] * x.shape[1]
    for place, rate in zip(kept, found, strict=True):
        rates[place] = float(rate)
    return rates
