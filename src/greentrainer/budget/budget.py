"""Budgets in the user's unit, and the unit of cost that each is counted in.

| unit | counted in | in all |
|---|---|---|
| rho | FLOPs; seconds where `cost` says so | that share of full fine-tuning |
| flops | FLOPs | so many |
| hours | seconds, by a clock that was set on this device | so many |
| kwh, co2_grams | seconds that what is left will last, at the power measured | so many |

A timed run spends as time goes by, so what is left is known at any moment, and each choice is made
within it: a clock that is a little off is corrected by the books.
"""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from greentrainer.budget.clock import NANO, Clock
from greentrainer.budget.spending import SpendingPlan
from greentrainer.budget.units import CostUnit, Flops, Timed
from greentrainer.energy import JOULES_PER_KWH, Consumption
from greentrainer.records import Ledger
from greentrainer.types import CostGraph, Unit

Cost = Literal["flops", "seconds"]
ALMOST = 0.9999
"""The greatest share of a timed run: one that may turn out too slow goes on being chosen for."""


@dataclass(frozen=True)
class Plain:
    """Plain full fine-tuning of a run: the graph of a sample batch, batches, and FLOPs of all.

    known: the FLOPs are those of the run's data, not of the sample.
    accumulate: batches an optimizer step.
    """

    graph: CostGraph
    batches: int
    flops: int
    known: bool
    accumulate: int = 1


@dataclass(frozen=True)
class Budget:
    """What a run may spend.

    unit, amount: so many of what.
    cost: what tensors are chosen by, at a `rho`.
    whole_flops: of plain full fine-tuning of all the run's batches, or what tells them from the
        engine's graphs; from the sample batch and their number when None.
    consumption: what the run has used so far; counted from the engine's making when None.
    clock: one set before, for batches of about this size; otherwise a few passes are timed first.

    Raises ValueError for an amount that cannot be.
    """

    unit: Unit = "rho"
    amount: float = 0.5
    cost: Cost = "flops"
    whole_flops: int | Callable[[Any], int] | None = None
    consumption: Consumption | None = None
    clock: Clock | None = None

    def __post_init__(self) -> None:
        if self.unit not in get_args(Unit) or self.cost not in get_args(Cost):
            raise ValueError(f"no budget in {self.unit!r} at the cost of {self.cost!r}")
        if not self.amount > 0 or (self.unit == "rho" and self.amount > 1):
            upper = " and 1" if self.unit == "rho" else ""
            raise ValueError(f"{self.unit} is {self.amount}: choose it above 0{upper}")
        if self.unit == "flops" and self.cost == "seconds":
            raise ValueError("a budget in flops is counted in flops, not at the cost of seconds")

    def told(self, graphs: Any) -> "Budget":
        """With what full fine-tuning of the run takes, if the graphs tell it."""
        if callable(self.whole_flops):
            return replace(self, whole_flops=self.whole_flops(graphs))
        return self

    @property
    def timed(self) -> bool:
        """Whether it is counted in seconds or their worth."""
        return self.unit in ("hours", "kwh", "co2_grams") or self.cost == "seconds"

    def require_course(self, batches: int | None) -> None:
        """Raise ValueError if so many batches cannot be held to it."""
        if self.unit != "rho" and batches is None:
            raise ValueError(f"a budget in {self.unit} takes total_batches: say how many")

    def terms(
        self,
        clock: Clock | None,
        sample: CostGraph,
        spending: SpendingPlan,
        consumption: Consumption,
        ledger: Ledger,
        fixed: bool = False,
        processes: int = 1,
    ) -> "Terms":
        """What it comes to.

        clock: for a timed one.
        sample: the graph of a plain batch.
        spending, consumption, ledger: the run's plan, its seconds and joules so far, its books.
        fixed: a rho is a share of plain full fine-tuning of the whole run, however few of its
            batches are trained on.
        processes: that spend it: each has its part of the FLOPs, and all have the same time.
        """
        batches = spending.total_batches or 1
        known = self.whole_flops if isinstance(self.whole_flops, int) else None
        flops = known // processes if known else batches * sample.full_flops
        plain = Plain(sample, batches, flops, known is not None, spending.accumulate)
        own = replace(self, amount=self.amount / processes) if self.unit == "flops" else self
        cost_unit = own._cost_unit(clock, plain, consumption, fixed)
        return Terms(self, cost_unit, cost_unit.spent(ledger))

    def _cost_unit(
        self, clock: Clock | None, plain: Plain, consumption: Consumption, fixed: bool
    ) -> CostUnit:
        """What it is counted in; a timed one takes a clock."""
        if not self.timed:
            share = self.amount * plain.flops if fixed else None
            total = self.amount if self.unit == "flops" else share
            return Flops(total, plain.flops, plain.known)
        assert clock is not None
        own = clock.per_batch(plain.accumulate)
        whole = own.full(plain.flops, plain.batches, sum(plain.graph.sizes.values()))
        left = self._left(clock.watts, consumption)
        if self.unit == "rho":
            total = NANO * self.amount * whole if fixed else None
            return Timed(own, plain.graph, left, total, NANO * whole, plain.known)
        seconds = consumption.so_far().seconds + left()
        return Timed(
            own, plain.graph, lambda: seconds - left(), NANO * seconds, NANO * whole, plain.known
        )

    def lasting(
        self, consumption: Consumption, batches: int | None
    ) -> Callable[[float, float], float]:
        """For how many seconds it lasts, told seconds of a plain batch, and the power in watts.

        batches: of the run, if told; a share of a run without end lasts for ever.
        """
        if self.unit == "rho":
            if batches is None:
                return lambda _full, _watts: math.inf
            return lambda full, _watts: self.amount * full * batches - consumption.so_far().seconds
        return lambda _full, watts: self._left(watts, consumption)()

    def _left(self, watts: float, consumption: Consumption) -> Callable[[], float]:
        """For how many more seconds what is left will last; of a rho the seconds used so far."""
        used = consumption.so_far
        if self.unit == "rho":
            return lambda: used().seconds
        if self.unit == "hours":
            return lambda: 3600 * self.amount - used().seconds
        if watts <= 0:
            raise ValueError(f"the meter shows no power, so {self.unit} is no budget: give hours")
        kilowatts = watts / JOULES_PER_KWH
        if self.unit == "kwh":
            return lambda: (self.amount - used().kwh) / kilowatts
        return lambda: consumption.lasts((self.amount - used().grams) / kilowatts)

    def __str__(self) -> str:
        counted = " of seconds" if self.cost == "seconds" and self.unit == "rho" else ""
        return f"{self.unit} {self.amount:g}{counted}"


@dataclass(frozen=True)
class Terms:
    """A budget as a run keeps to it: counted in a unit of cost.

    spent: in that, before training begins.
    """

    budget: Budget
    cost_unit: CostUnit
    spent: float

    @property
    def share(self) -> float:
        """Of plain full fine-tuning of the run; above 1 where more is left than that takes."""
        if self.cost_unit.total is None:
            return self.budget.amount
        return (self.cost_unit.total - self.spent) / self.cost_unit.whole

    @property
    def rho(self) -> float:
        """The share that is chosen for, at most all."""
        return min(self.share, 1.0 if self.cost_unit.total is None else ALMOST)

    def amount_for(self, share: float) -> float:
        """What such a share of full fine-tuning takes, after what was spent, in the unit."""
        assert self.cost_unit.total is not None
        takes = self.spent + share * self.cost_unit.whole
        return self.budget.amount * takes / self.cost_unit.total

    def require(self, smallest: float, greatest: float) -> None:
        """Raise ValueError where nothing can be trained within it; tell of more than is of use.

        smallest, greatest: shares of full fine-tuning at which one tensor, and all, are trained.
        """
        unit, amount = self.budget.unit, self.budget.amount
        fixed = self.cost_unit.total is not None
        if self.share < smallest and unit == "rho" and self.budget.timed and fixed:
            needed = self.amount_for(smallest)
            advice = f", or give {needed:.3g}" if needed <= 1 else ""
            raise ValueError(
                f"{self.budget} of full fine-tuning does not pay for getting ready and one step: "
                f"train on more examples{advice}"
            )
        if self.share < smallest and unit == "rho" and smallest > 1:
            raise ValueError(
                f"training anything takes {smallest:.3f} times what full fine-tuning does: leave "
                "out what is fixed (positions, say), or train on longer rows"
            )
        if self.share < smallest and unit == "rho":
            raise ValueError(
                f"rho is {amount}: choose it between {smallest:.4f} (for this model) and 1"
            )
        if self.share < smallest:
            raise ValueError(
                f"{unit} is {amount:g}, and even the smallest selection takes about "
                f"{self.amount_for(smallest):.3g}: give at least that, or train on fewer examples"
            )
        if self.share > greatest and unit != "rho":
            warnings.warn(
                f"{self.budget}: training everything takes about "
                f"{self.amount_for(greatest):.3g}, so nothing is frozen",
                stacklevel=3,
            )
