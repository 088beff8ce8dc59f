"""The probe of a run that chooses its steps: what a step with each tail is worth to other rows.

Batches are halved; the updates that one half's rows make are judged by the other's
(`importance/worth.py`): neither is seen by the other.  A pass tells the gradient that judges,
another what the whole step is worth, and one more, the cheaper the shorter, each tail.  Tails are
measured from `FIRST` positions on, towards where the progress grows, as long as that pays; and then
with the best of them parts of prompts, if these may be read alone, halves first.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from greentrainer.engine.bookkeeper import Bookkeeper
from greentrainer.engine.controller import Controller
from greentrainer.engine.steps import WHOLE, Steps, Values
from greentrainer.forward import ForwardSavings, unpacked
from greentrainer.importance import Judge, Pair, measure_worth
from greentrainer.model import Alone
from greentrainer.records import Entry
from greentrainer.types import PARTS, Batch, LossFn, Tail, parts_of, rows_in, taken

FIRST = 8
"""Positions of the first tail that is measured."""
FURTHER = 4 * FIRST
"""Of another one, where whole steps seem better."""
SHARE = 0.05
"""Of what is left of a budget: that the probe may take."""


FEW = 4
"""Rows of a batch that is not halved: it is judged by the next batch."""


def pairs_of(given: Sequence[Batch]) -> list[Pair]:
    """Each batch's first half and its second; of small batches each and the next one."""
    halves = [halved(batch) for batch in given]
    if all(half is not None for half in halves):
        return [half for half in halves if half is not None]
    return [Pair(one, other) for one, other in zip(given[::2], given[1::2], strict=False)]


def halved(batch: Batch) -> Pair | None:
    """The first half of a batch's rows and the second; None for one that cannot be divided.

    As one cannot that has few rows, or values that are of no row (patches of images, one behind the
    other).  Of a packed batch of few rows its examples are the rows.
    """
    batch = unpacked(batch) if rows_in(batch) < FEW else batch
    rows = rows_in(batch)
    if rows < FEW or any(_of_no_row(value, rows) for value in batch.values()):
        return None
    return Pair(taken(batch, slice(rows // 2)), taken(batch, slice(rows // 2, rows)))


def _of_no_row(value: Any, rows: int) -> bool:
    """Of more values than rows; one with a row's dimension behind others is the same for all."""
    shape: tuple[int, ...] = getattr(value, "shape", ())
    return len(shape) > 1 and shape[0] > rows


@dataclass
class WorthProbe:
    """Measures worth.  bookkeeper: of training, which a probe is not; its ledger has what it cost.

    names: of the tensors that may be trained.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    loss_fn: LossFn | None
    names: Sequence[str]
    bookkeeper: Bookkeeper
    savings: ForwardSavings
    controller: Controller
    processes: Alone

    def measure(self, given: Sequence[Batch], steps: Steps) -> list[Values] | None:
        """Worth of every tensor with some tails, by each of the batches that are paid for.

        Several processes measure on batches of their own, and all know what all found.

        None where `SHARE` of what is left pays for none, or whole steps can be made to the end; and
        where it was measured before: once there are moments, what a gradient adds to an update is
        so little that it drowns in the noise of a few rows (docs/positions.md).
        """
        agreed = self.processes.first
        if steps.measured or agreed(steps.pays_for_everything()):
            return None
        start = time.perf_counter()
        tails = [tail for tail in self.controller.samples if tail is None or _is_step(tail)]
        allowed = SHARE * self.controller.left()
        pairs = pairs_of(given)
        pairs = pairs[: min(self.processes.every(len(pairs)))]
        tails = tails or list(self.controller.samples)[-1:]
        wanted: list[Tail] = [tails[-1]]
        if len(tails) > 1:
            wanted.append(min(tails[:-1], key=lambda tail: abs((tail or 0) - FIRST)))
        while pairs and agreed(self._cost(pairs, wanted, judging=True) > allowed):
            pairs.pop()
        if not pairs:
            return None
        found: list[dict[Tail, dict[str, float]]]
        found = [{} for _ in self.processes.pooled(range(len(pairs)))]
        judges: list[Judge] = []
        spent = 0.0
        with self.bookkeeper.unobserved(), self.savings.probing():
            while wanted and spent + (more := agreed(self._cost(pairs, wanted, not judges))) <= (
                allowed
            ):
                spent += more
                for own, new in zip(found, self._measured(pairs, wanted, judges), strict=True):
                    own.update(new)
                wanted = agreed(self._next(steps, found, tails))
            read = self._measure_read(pairs, judges, steps, found, allowed - spent)
        self._book(pairs, list(found[0]), read, start)
        return list(found)

    def _measure_read(
        self,
        pairs: Sequence[Pair],
        judges: list[Judge],
        steps: Steps,
        found: Sequence[Values],
        allowed: float,
    ) -> list[tuple[Tail, str]]:
        """What reading parts of prompts is worth through the best tail; which were measured.

        Halves first, then smaller parts of the best kind.  allowed: what it may cost.
        """
        able = [part for part in parts_of(steps.prompts) if part is not None]
        tail = self.processes.first(steps.best_tail(found))
        if tail is None or not self.controller.samples_read:
            return []
        totals = [{WHOLE: sum(values[tail].values())} for values in found]
        able.sort(key=lambda part: -PARTS[part].share)
        measured: list[tuple[Tail, str]] = []
        while able:
            part = able.pop(0)
            if measured and PARTS[part].share < PARTS[measured[-1][1]].share:
                best = max((p for _, p in measured), key=lambda p: sum(one[p] for one in totals))
                able = [p for p in able if PARTS[p].which == PARTS[best].which]
                if PARTS[part].which != PARTS[best].which:
                    continue
            cost = self.processes.first(self._cost(pairs, [tail], judging=False, part=part))
            if cost > allowed:
                continue
            allowed -= cost
            values = self._measured(pairs, [tail], judges, part)
            for total, own in zip(totals, values, strict=True):
                total[part] = sum(own[tail].values())
            measured.append((tail, part))
        steps.reading = totals
        return measured

    def _measured(
        self,
        pairs: Sequence[Pair],
        tails: Sequence[Tail],
        judges: list[Judge],
        part: str | None = None,
    ) -> list[dict[Tail, dict[str, float]]]:
        passes = dict.fromkeys(tails, self.names)
        model, optimizer, at = self.model, self.optimizer, partial(self.savings.at, part=part)
        own = measure_worth(model, pairs, optimizer, self.loss_fn, passes, at, judges)
        return self.processes.pooled(own)

    def _next(self, steps: Steps, found: Sequence[Values], tails: Sequence[Tail]) -> list[Tail]:
        """The tail to measure next: a neighbour of the best so far; none where all are known."""
        best = steps.best_tail(found)
        known = set(found[0])
        if best is None:
            bounded = [tail for tail in tails if tail is not None and tail <= FURTHER]
            return [tail for tail in bounded[-1:] if tail not in known]
        at = tails.index(best)
        near = [tails[n] for n in (at - 1, at + 1) if 0 <= n < len(tails)]
        return [tail for tail in near if tail not in known][:1]

    def _cost(
        self,
        pairs: Sequence[Pair],
        tails: Sequence[Tail],
        judging: bool,
        part: str | None = None,
    ) -> float:
        """Of measuring these tails, in the run's unit.  part: of prompts that is read."""
        passes = self._passes(pairs, tails, judging, part)
        prices = [self.controller.cost_unit.price(graph) for graph in passes]
        return float(sum(one.forward_flops + one.full_backward_flops for one in prices))

    def _passes(
        self,
        pairs: Sequence[Pair],
        tails: Sequence[Tail],
        judging: bool,
        part: str | None = None,
    ) -> list[Any]:
        """The graph of each pass."""
        of = self.controller.graphs.of_batch
        found = []
        if judging:
            with self.savings.at(None):
                found += [of(pair.judged_by) for pair in pairs]
        for tail in tails:
            with self.savings.at(tail, part):
                found += [of(pair.made_of) for pair in pairs]
        return found

    def _book(
        self,
        pairs: Sequence[Pair],
        tails: Sequence[Tail],
        read: Sequence[tuple[Tail, str]],
        start: float,
    ) -> None:
        graphs = self._passes(pairs, tails, judging=True)
        for tail, part in read:
            graphs += self._passes(pairs, [tail], judging=False, part=part)
        forward = sum(graph.forward_flops for graph in graphs)
        backward = sum(graph.full_backward_flops for graph in graphs)
        seconds = time.perf_counter() - start
        self.bookkeeper.ledger.add(Entry("probe", forward, backward, seconds=seconds))


def _is_step(tail: int) -> bool:
    """Whether it is a power of two, or no position at all: the others are hardly different."""
    return tail & (tail - 1) == 0
