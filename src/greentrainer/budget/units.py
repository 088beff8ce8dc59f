"""What a budget is counted in: FLOPs, or seconds, joules and grams, which a clock tells.

The choice of tensors needs four things of a unit of cost: what a batch will cost (a cost graph in
it), what has been spent, what full fine-tuning of the batches so far would have cost, and how much
there is in all, where that is fixed.  Everything else about budgets is the same in any.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from greentrainer.budget.clock import NANO, Clock
from greentrainer.records import Ledger
from greentrainer.types import CostGraph

PACES = (0.1, 10.0)
"""A clock is believed to be off by so much at most."""


class CostUnit(Protocol):
    """total: what the whole run may spend; None where `rho` of full fine-tuning says it.

    whole: of plain full fine-tuning of the run, known from its data or (not `known`) from a sample.
    correction: what is executed for each FLOP that graphs tell, where FLOPs are what is spent.
    """

    total: float | None
    whole: float
    known: bool
    correction: float

    def price(self, graph: CostGraph) -> CostGraph:
        """The graph with costs in this unit."""

    def spent(self, ledger: Ledger) -> float:
        """By the run so far."""

    def full(self, flops: float, batches: int) -> float:
        """Of plain full fine-tuning of batches of so many FLOPs in all."""

    def within(self, ledger: Ledger) -> float:
        """Of what steps hold besides, where the plan has to make room for it."""

    def last_probe(self, ledger: Ledger) -> float:
        """Of the newest probe."""

    def left(self, spent: float) -> float:
        """What a fixed total still pays for, after what was spent, at the prices told."""

    def observe(self, told: float, took: float) -> None:
        """Some batches were told to take so much, and took so much."""

    def correct(self, ratio: float) -> None:
        """A batch was counted: so many FLOPs are executed for each that graphs tell."""


@dataclass
class Flops:
    """FLOPs, as in the paper."""

    total: float | None = None
    whole: float = 0.0
    known: bool = False
    correction: float = 1.0

    def price(self, graph: CostGraph) -> CostGraph:
        """The graph itself."""
        return graph

    def spent(self, ledger: Ledger) -> float:
        """Probes included."""
        return ledger.spent_flops

    def full(self, flops: float, batches: int) -> float:
        """The same."""
        return flops

    def within(self, ledger: Ledger) -> float:
        """As counted."""
        return ledger.within_flops

    def last_probe(self, ledger: Ledger) -> float:
        """Of the newest probe."""
        return ledger.last_probe_flops

    def left(self, spent: float) -> float:
        """The rest."""
        assert self.total is not None
        return (self.total - spent) / self.correction

    def observe(self, told: float, took: float) -> None:
        """Batches are counted by the engine's verifier."""

    def correct(self, ratio: float) -> None:
        """A batch was counted: so many are executed for each that graphs tell."""
        self.correction = ratio


@dataclass
class Timed:
    """Something that is spent as time goes by: nanoseconds, or as much of another thing.

    clock: tells seconds.  sample: the graph of a plain batch.
    spending: what has been spent since the run began, in seconds' worth.
    pace: seconds that pass for each that it tells.
    """

    clock: Clock
    sample: CostGraph
    spending: Callable[[], float]
    total: float | None = None
    whole: float = 0.0
    known: bool = False
    pace: float = 1.0
    correction: float = 1.0
    _priced: dict[int, tuple[CostGraph, CostGraph]] = field(default_factory=dict)

    def price(self, graph: CostGraph) -> CostGraph:
        """In nanoseconds; graphs are kept beside their prices, for their numbers."""
        if id(graph) not in self._priced:
            if len(self._priced) > 512:
                self._priced.clear()
            self._priced[id(graph)] = graph, self.clock.price(graph)
        return self._priced[id(graph)][1]

    def spent(self, ledger: Ledger) -> float:
        """By the run so far, whatever it did."""
        return NANO * self.spending()

    def full(self, flops: float, batches: int) -> float:
        """As the clock says."""
        return NANO * self.clock.full(flops, batches, sum(self.sample.sizes.values()))

    def within(self, ledger: Ledger) -> float:
        """It passes as any time does."""
        return 0.0

    def last_probe(self, ledger: Ledger) -> float:
        """Of the newest probe."""
        return NANO * ledger.last_probe_seconds

    def left(self, spent: float) -> float:
        """At the pace so far."""
        assert self.total is not None
        return (self.total - spent) / self.pace

    def observe(self, told: float, took: float) -> None:
        """From now on this is the pace."""
        if told > 0 and took > 0:
            self.pace = min(PACES[1], max(PACES[0], took / told))

    def correct(self, ratio: float) -> None:
        """The clock was set by seconds, whatever was counted."""
