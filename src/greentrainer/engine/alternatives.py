"""What to spend a budget on: how many steps, and what each of them trains.

With N steps available and a budget B, a step that costs c and is worth v can be made
n = min(N, B / c) times.  As long as steps are of equal worth, what comes of it is the progress

    v * n = v * min(N, B / c),

and the alternative of the greatest progress is taken.  A step's c and v depend on which positions
and which tensors it trains (`importance/worth.py` measures v on rows that the update has not seen).
The whole step, every tensor through every position, is always among the alternatives; made as often
as the budget pays for it, it is full fine-tuning stopped early.  So what is chosen is never worth
less than that, as far as v is known.

Steps on rows that were seen before are worth less: `Rows.again` of what a fresh row's are.  Fresh
rows come first, so the n steps count as

    min(n, fresh) + again * max(0, n - fresh).

Among the tensors of one tail the best set is found by the exact selector, which maximises v for a
given c.  Which c is not known beforehand; it lies between what N steps can spend each and what
training everything costs.  Within [low, high] no set's progress exceeds

    v(high) * steps(min(N, B / low)),

so intervals are halved, the most promising first, until none can beat what was found by more than
`CLOSE`.
"""

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from greentrainer.types import Selection, Tail

CLOSE = 5e-4
"""How far the progress of what is chosen may lie below the best, as a share."""
MOST = 64
"""Selections tried for one tail."""


Best = Callable[[float], tuple[Selection, float, float] | None]
"""From the most that a step may cost to a set of tensors, its cost and its worth."""


@dataclass(frozen=True)
class Rows:
    """Steps to come: so many in all, and first those on rows that were not seen before.

    again: what a step on rows seen before is worth, of what one on fresh rows is.
    """

    steps: float
    fresh: float
    again: float = 1.0

    def counted(self, steps: float) -> float:
        """So many steps in those on fresh rows."""
        made = min(steps, self.steps)
        return min(made, self.fresh) + self.again * max(0.0, made - self.fresh)

    @property
    def useful(self) -> float:
        """Steps that are worth anything."""
        return self.steps if self.again > 0 else min(self.steps, self.fresh)


@dataclass(frozen=True)
class Alternative:
    """A way to train a step.

    selection: what is trained; None for one that is only weighed.  part: what is read of prompts.
    cost: of a step, in the run's unit.  value: of a step.  steps: that would be made.
    """

    tail: Tail
    cost: float
    value: float
    steps: float
    progress: float
    selection: Selection | None = None
    part: str | None = None


@dataclass(frozen=True)
class Side:
    """One side of the choice: the sets of tensors that can be trained through one tail.

    forward, full: cost of a step's forward pass, and of a step that trains everything.
    least: of one that trains the cheapest tensor.
    everything, whole: worth of a step that trains everything, and that selection.
    best: the set of the greatest worth whose step costs at most so much, its own cost and its own
        worth, or None if no such set is worth anything; None where sets are not weighed.
    judged: worth of a set to other rows than those: chosen and judged by the same rows, a set is
        rewarded for their noise.  None: its worth is that by which it was chosen.
    part: what is read of prompts; all when None.
    """

    tail: Tail
    full: float
    least: float
    everything: float
    whole: Selection | None = None
    best: Best | None = None
    judged: Callable[[Selection], float] | None = None
    part: str | None = None


def progress(cost: float, value: float, rows: Rows, budget: float) -> tuple[float, float]:
    """Steps made, and what they come to; none where there is not enough for one."""
    steps = min(rows.useful, budget / cost)
    return (steps, value * rows.counted(steps)) if steps >= min(1.0, rows.steps) else (0.0, 0.0)


def weighed(sides: Sequence[Side], rows: Rows, budget: float) -> list[Alternative]:
    """The best alternative of each side, the best of all first.

    Of equal ones the earlier side's.  Raises ValueError where the budget pays for no step.
    """
    found = [one for side in sides for one in _of(side, rows, budget)]
    able = [one for one in found if one.steps > 0]
    if not able:
        cheapest = min(side.least for side in sides)
        raise ValueError(f"what is left ({budget:.3g}) pays for no step ({cheapest:.3g} at least)")
    return sorted(able, key=lambda one: -one.progress)


def _of(side: Side, rows: Rows, budget: float) -> list[Alternative]:
    """Training everything through the tail, and the best set of tensors."""
    all_of_it = _alternative(side, side.full, side.everything, rows, budget, side.whole)
    if side.best is None:
        return [all_of_it]
    best = _refined(side, rows, budget)
    if best is None:
        return [all_of_it]
    if side.judged is not None and best.selection is not None:
        value = side.judged(best.selection)
        best = replace(best, **_worth(best.cost, value, rows, budget))
    return [all_of_it, best]


def _worth(cost: float, value: float, rows: Rows, budget: float) -> dict[str, Any]:
    steps, comes_to = progress(cost, value, rows, budget)
    return {"value": value, "steps": steps, "progress": comes_to}


def _alternative(
    side: Side, cost: float, value: float, rows: Rows, budget: float, what: Selection | None
) -> Alternative:
    made = _worth(cost, value, rows, budget)
    return Alternative(side.tail, cost, selection=what, part=side.part, **made)


def _refined(side: Side, rows: Rows, budget: float) -> Alternative | None:
    """The best of the sets of tensors, by the rows that they are chosen by; None if there is none.

    Of cost limits up to what a step may cost at all.
    """
    choose = side.best
    assert choose is not None
    high = min(side.full, budget / min(1.0, rows.steps))
    found: list[Alternative] = []

    def tried(limit: float) -> float:
        """The worth of the set that is best within this limit."""
        best = choose(limit)
        if best is None:
            return 0.0
        what, cost, value = best
        found.append(_alternative(side, cost, value, rows, budget, what))
        return value

    low = min(high, max(side.least, budget / rows.useful))
    most = tried(high)
    if low < high:
        tried(low)
    queue = [(-_bound(most, low, rows, budget), low, high, most)]
    for _ in range(MOST):
        best = max((one.progress for one in found), default=0.0)
        if not queue or -queue[0][0] <= best * (1 + CLOSE):
            break
        _, lower, upper, value = heapq.heappop(queue)
        middle = (lower * upper) ** 0.5
        half = tried(middle)
        for a, b, most in ((lower, middle, half), (middle, upper, value)):
            heapq.heappush(queue, (-_bound(most, a, rows, budget), a, b, most))
    return max(found, key=lambda one: one.progress, default=None)


def _bound(value: float, cost: float, rows: Rows, budget: float) -> float:
    """No set that costs at least so much, and is worth at most so much, comes to more."""
    return value * rows.counted(min(rows.useful, budget / cost))
