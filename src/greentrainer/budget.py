"""Budgets in the user's unit, and the currency that each is counted in.

| unit | counted in | in all |
|---|---|---|
| rho | FLOPs; seconds where `cost` says so | that share of full fine-tuning |
| flops | FLOPs | so many |
| hours | seconds, by a clock that was set on this device | so many |
| kwh, co2_grams | what was used, as seconds' worth at the power measured until then | so many |

A timed run spends as time goes by, so what is left is known at any moment, and each choice is made
within it: a clock that is a little off is corrected by the books.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, get_args

from greentrainer.clock import NANO, Clock
from greentrainer.consumption import Consumption
from greentrainer.currency import Currency, Flops, Timed
from greentrainer.energy import JOULES_PER_KWH
from greentrainer.types import CostGraph, Unit

Cost = Literal["flops", "seconds"]


@dataclass(frozen=True)
class Budget:
    """What a run may spend.

    unit, amount: so many of what.
    cost: what tensors are chosen by, at a `rho`.
    whole_flops: of plain full fine-tuning of all the run's batches; from the sample batch and
        their number when None.
    consumption: what the run has used so far.
    clock: one set before; otherwise a few passes are timed first.

    Raises ValueError for an amount that cannot be.
    """

    unit: Unit = "rho"
    amount: float = 0.5
    cost: Cost = "flops"
    whole_flops: int | None = None
    consumption: Consumption = field(default_factory=Consumption, compare=False)
    clock: Clock | None = None

    def __post_init__(self) -> None:
        if self.unit not in get_args(Unit) or self.cost not in get_args(Cost):
            raise ValueError(f"no budget in {self.unit!r} at the cost of {self.cost!r}")
        if self.amount <= 0 or (self.unit == "rho" and self.amount > 1):
            upper = " and 1" if self.unit == "rho" else ""
            raise ValueError(f"{self.unit} is {self.amount}: choose it above 0{upper}")

    @property
    def timed(self) -> bool:
        """Whether it is counted in seconds or their worth."""
        return self.unit in ("hours", "kwh", "co2_grams") or self.cost == "seconds"

    @property
    def tilted(self) -> bool:
        """Whether more is to be spent at some times than at others."""
        return len(self.consumption.intensity.grams) > 1

    def currency(self, clock: Clock | None, plain: CostGraph, accumulate: int = 1) -> Currency:
        """What it is counted in; a timed one takes a clock.

        plain: the graph of a sample batch.  accumulate: batches an optimizer step.
        """
        if not self.timed:
            return Flops(self.amount if self.unit == "flops" else None)
        assert clock is not None
        per_second, used = self._rate()
        total = None if self.unit == "rho" else NANO * self.amount / per_second
        return Timed(clock.per_batch(accumulate), plain, lambda: used() / per_second, total)

    def _rate(self) -> tuple[float, Callable[[], float]]:
        """How much a second uses up, in the unit, and how much has been used."""
        consumption = self.consumption
        if self.unit == "kwh":
            kilowatts = consumption.watts() / JOULES_PER_KWH
            return kilowatts, lambda: consumption.used().kwh
        if self.unit == "co2_grams":
            now, ahead = consumption.clock(), 3600.0
            grams = consumption.intensity.mean(now, ahead)
            rate = consumption.watts() * grams / JOULES_PER_KWH
            return rate, lambda: consumption.used().grams
        seconds = 1 / 3600 if self.unit == "hours" else 1.0
        return seconds, lambda: consumption.used().seconds * seconds

    def share(self, currency: Currency, plain: CostGraph, batches: int, spent: float) -> float:
        """Of plain full fine-tuning of the run that is left; above 1 where more than it takes is.

        spent: so far, in the currency.
        """
        if currency.total is None:
            return self.amount
        flops = self.whole_flops or batches * plain.full_flops
        return (currency.total - spent) / currency.full(flops, batches)

    def amount_for(
        self, currency: Currency, plain: CostGraph, batches: int, spent: float, share: float
    ) -> float:
        """What such a share of full fine-tuning takes, after what was spent, in the unit."""
        assert currency.total is not None
        flops = self.whole_flops or batches * plain.full_flops
        return self.amount * (spent + share * currency.full(flops, batches)) / currency.total

    def __str__(self) -> str:
        return f"{self.unit} {self.amount:g}"
