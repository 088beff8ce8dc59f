"""How much of full fine-tuning the next batches may cost, so that the whole run comes to `rho`.

The debt is what has been spent, and what known probes will cost, beyond `rho` of the reference so
far.  It is paid back evenly over the batches that are left.  If their number is not known, it is
paid back at once, over the next few batches: then the run is at `rho` whenever it may end.
"""

import math
from dataclasses import dataclass

PAYBACK_BATCHES = 4
"""Over how many batches a debt is repaid, or a saving spent, when the end is not known."""
MARGIN = 0.02
"""Share of a run's batches by which the books are balanced before its end."""
SLACK = 0.002
"""Of a run that is counted in FLOPs."""
TIMED_SLACK = 0.01
"""Of one that is counted by a clock."""


@dataclass(frozen=True)
class SpendingPlan:
    """The plan of a run.

    rho: share of full fine-tuning's FLOPs that the whole run may spend.
    total_batches: training batches planned, None if not known.
    every: training batches between selections, None if the caller decides each time.
    accumulate: training batches an optimizer step; what is trained changes only between steps.
    slack: a projected deviation, as a share of the budget, that does not call for another choice.
    """

    rho: float
    total_batches: int | None = None
    every: int | None = None
    accumulate: int = 1
    slack: float = SLACK

    def horizon(self, batches: int) -> int:
        """Batches over which a debt is to be settled.

        The last few batches are left out, so that it does not matter how large they turn out.
        """
        if self.total_batches is None or self.total_batches <= batches:
            return PAYBACK_BATCHES
        left = self.total_batches - batches
        return max(left - math.ceil(MARGIN * self.total_batches), min(left, PAYBACK_BATCHES))

    def last(self, batches: int) -> int:
        """Batches of the last optimizer step, if it is the one that begins now; else 0."""
        left = 0 if self.total_batches is None else self.total_batches - batches
        return left if 0 < left <= self.accumulate else 0

    def due(self, batches: int, last: int) -> bool:
        """Whether a selection is due after that many batches, when the last was made at `last`."""
        ended = self.total_batches is not None and batches >= self.total_batches
        return self.every is not None and batches // self.every > last // self.every and not ended

    def probes_left(self, batches: int) -> int:
        """Selections still to come after the one made at `batches`."""
        if self.every is None or self.total_batches is None:
            return 0
        return math.ceil(self.total_batches / self.every) - batches // self.every - 1

    def rate(self, batches: int, spent: float, full: float, mean_full: float) -> float:
        """Share of full fine-tuning that the next batches may cost.

        spent: FLOPs spent so far and reserved for probes.  full: the reference so far.  mean_full:
        the reference of one batch to come.
        """
        debt = spent - self.rho * full
        return self.rho - debt / (self.horizon(batches) * mean_full)

    def off_course(self, batches: int, rate: float, current: float) -> bool:
        """Whether going on at `current`, when `rate` is allowed, would miss the budget.

        Missing it by less than `slack` of the whole run is left for later batches to settle, but
        overspending is not left over at the end.
        """
        horizon = self.horizon(batches)
        whole = self.total_batches or horizon
        miss = (current - rate) * horizon / (self.rho * whole)
        ending = self.total_batches is not None and horizon <= max(1, whole // 20)
        return miss > (0.0 if ending else self.slack) or miss < -5 * self.slack
