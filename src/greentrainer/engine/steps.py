"""How many steps are made, and what each of them trains, within what is left of a budget.

`alternatives.py` has the choice itself; here it is given what it needs: what a step costs with each
tail, what it is worth to rows that the update has not seen, steps and budget that are left.  It is
made anew at each selection.  Between selections the tensors stay, and batches that turn out dearer
or cheaper than expected change the number of steps.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from greentrainer.engine.alternatives import Alternative, Rows, Side, weighed
from greentrainer.engine.chooser import Basis
from greentrainer.engine.controller import Controller
from greentrainer.select import select
from greentrainer.types import PARTS, Importance, Prompts, Selection, Tail, parts_of

Values = Mapping[Tail, Importance]
"""Worth of each tensor, for each tail that was measured."""

AGAIN = 0.0
"""Worth of a step on rows seen before where it was not measured: three passes of SciTLDR end worse
than one, and so does one and a third (docs/positions.md)."""
ENOUGH = 100
"""Optimizer steps up to which rows seen again count like fresh ones: with fewer, weights have not
moved far enough to have learned them."""
BEFOREHAND = 1
"""Pairs that `UNMEASURED` counts as, beside those measured."""
SHORT = 4
UNMEASURED = {False: 0.9, True: 0.6}
"""Worth of a step with a tail, of what a whole step's is, where nothing was measured: from `SHORT`
positions on and below (SciTLDR, DialogSum and WebQuestions with SmolLM2: .83 to .98, and .32 to .62
without any position of the prompt)."""
UNREAD = {0.5: 0.85, 0.25: 0.75, 0.1: 0.6}
"""Worth of a step that reads such a share of each prompt, of what one that reads it whole is, where
nothing was measured (SciTLDR and DialogSum: .93 to .95, .83 to .86, .63 to .68; WebQuestions .71
for half; docs/positions.md)."""
WHOLE = "whole"


@dataclass
class Steps:
    """The plan of a run that chooses how many steps it makes.

    asked: batches that it may have at most.  one_pass: the first of them, on rows not seen before.
    again: what a step on rows seen before is worth, of what one on fresh rows is.
    prompts: how much of them is read: whole, a part, or choose.
    measured: by each of some pairs of batches; sets of tensors are chosen by the first half of
        them, and what they are worth is told by the others.
    reading: by each pair what a step is worth that reads a part of each prompt, and one that reads
        it whole (`WHOLE`), both through one tail.
    """

    controller: Controller
    asked: int
    one_pass: int
    again: float = AGAIN
    prompts: Prompts = "whole"
    measured: Sequence[Values] = ()
    reading: Sequence[Mapping[str, float]] = ()
    considered: list[Alternative] = field(default_factory=list)
    _since: tuple[int, float, float] | None = None
    """Batches done, spent, and full fine-tuning of these, when the selection in force was first
    followed."""

    @property
    def _plan(self) -> Any:
        return self.controller.plan

    @property
    def done(self) -> int:
        """Batches so far."""
        return self.controller.ledger.batches

    @property
    def scale(self) -> float:
        """What a batch to come costs, of what the sample batch does."""
        return self.controller.mean_ahead(self.asked) / self.controller.full_cost

    @property
    def _furthest(self) -> Tail:
        """The longest tail that may be trained through: all positions, if none was asked for."""
        return list(self.controller.samples)[-1]

    def left(self) -> float:
        """What may still be spent, on batches like the sample."""
        return self.controller.left() / self.scale

    def rows(self) -> Rows:
        """Batches to come."""
        left = self.asked - self.done
        fresh = max(self.one_pass, ENOUGH * self._plan.accumulate) - self.done
        return Rows(float(left), float(max(0, min(left, fresh))), self.again)

    def pays_for_everything(self) -> bool:
        """Whether the dearest steps can be made as long as steps are worth anything."""
        whole = self.controller.expected_price(self._furthest)
        cost = whole.forward_flops + whole.full_backward_flops
        return self.left() >= cost * self.rows().useful

    def choose(self) -> Selection:
        """The best alternative for what is left; the plan is made for its number of steps.

        Raises ValueError where the budget pays for no step.
        """
        self.considered = weighed(self.sides(), self.rows(), self.left())
        best = self.considered[0]
        assert best.selection is not None
        self._since = None
        self._settle(best.steps)
        return best.selection

    def _settle(self, batches: float) -> None:
        """Plan for so many batches more, in whole optimizer steps."""
        each = self._plan.accumulate
        more = max(1, math.floor(batches / each + 1e-9)) * each
        total = min(self.asked, self.done + more)
        self.controller.plan = replace(self._plan, total_batches=total)

    def replan(self, chosen: Selection) -> None:
        """After a step: how many more the selection in force can make of what is left."""
        self._observe(chosen)
        if self.ending(chosen) is not None:
            self.controller.plan = replace(self._plan, total_batches=self.done)
            return
        self._settle(min(self.rows().useful, self.left() / self.cost_of(chosen)))

    def _observe(self, chosen: Selection) -> None:
        """Hold what steps were told to cost against what they did, the first one left out."""
        now = self.done, *self.controller.spent_and_full()
        if self._since is None:
            self._since = now
            return
        steps, spent, full = (b - a for a, b in zip(self._since, now, strict=True))
        if steps >= 2 * self._plan.accumulate:
            told = self.cost_of(chosen) * full / self.controller.full_cost
            self.controller.cost_unit.observe(told, spent)

    def ending(self, chosen: Selection) -> str | None:
        """Why no further step is made; None where one of average batches is paid for."""
        if self.done >= self.asked:
            return "every step was made"
        if self.rows().useful <= 0:
            return "rows seen again are not worth what they cost: the rest of the budget is left"
        step = self._plan.accumulate * self.cost_of(chosen)
        return "the budget is spent" if self.left() < step else None

    @property
    def spent_share(self) -> float:
        """Of plain full fine-tuning of all that was asked for."""
        unit = self.controller.cost_unit
        return unit.spent(self.controller.ledger) / unit.whole if unit.whole else 0.0

    def fitting(self, chosen: Selection, basis: Basis) -> float | None:
        """The backward budget to choose anew by where the step at hand does not fit what is left.

        None where it does.  basis: of its first batch; the others are taken to be like it.
        """
        graph = basis.graph
        room = self.controller.left() / self._plan.accumulate - graph.forward_flops
        return None if graph.backward_flops(chosen.names) <= room else max(room, basis.least)

    def cost_of(self, chosen: Selection) -> float:
        """Of the sample batch."""
        graph = self.controller.expected_price(chosen.tail, chosen.part)
        return float(graph.forward_flops + graph.backward_flops(chosen.names))

    # What the choice is among

    def sides(self) -> list[Side]:
        """One for each tail, the longest, all positions, last; and for each part of prompts."""
        found = {basis.tail: basis for basis in self.controller.bases() if basis.among is None}
        read = [self._side_read(tail, part) for tail, part in self.controller.samples_read]
        whole = None in parts_of(self.prompts) or not read
        return [*read, *(self._side(basis) for basis in found.values())] if whole else read

    def best_tail(self, measured: Sequence[Values]) -> Tail:
        """The tail of the greatest progress, everything trained, among those measured."""
        self.measured = measured
        known = [side for side in self.sides() if side.tail in measured[0]]
        sides = [side for side in known if side.part is None] or known
        plain = [replace(side, best=None) for side in sides]
        return weighed(plain, self.rows(), self.left())[0].tail

    def _side(self, basis: Basis) -> Side:
        graph, tail = basis.graph, basis.tail
        flops = basis.real.full_backward_flops
        everything = self.worth(tail)
        whole = Selection(basis.real.tensors, everything, flops, flops, tail)
        full = float(graph.forward_flops + graph.full_backward_flops)
        by, other = self._halves(tail)
        if by is None or other is None:
            return Side(tail, full, float(basis.cheapest), everything, whole)
        chosen_by, judged_by, in_all = by, other, sum(other.values())

        def best(limit: float) -> tuple[Selection, float, float] | None:
            try:
                found = select(graph, chosen_by, limit - graph.forward_flops)
            except ValueError:  # nothing that is affordable is worth anything
                return None
            cost = graph.forward_flops + graph.backward_flops(found.names)
            value = sum(chosen_by[name] for name in found.names)
            real = basis.real.backward_flops(found.names)
            known = replace(found, tail=tail, backward_flops=real, backward_budget=float(real))
            return known, float(cost), value

        def judged(chosen: Selection) -> float:
            """At most what everything is worth: what seems to do harm may be noise."""
            share = sum(judged_by[name] for name in chosen.names) / in_all
            return everything * min(1.0, share)

        return Side(tail, full, float(basis.cheapest), everything, whole, best, judged)

    def _side_read(self, tail: int, part: str) -> Side:
        """Training everything through a tail while prompts are read in part."""
        sample = self.controller.sample_of(tail, part)
        price = self.controller.expected_price(tail, part)
        full = float(price.forward_flops + price.full_backward_flops)
        worth, flops = self.worth(tail) * self._read(part), sample.full_backward_flops
        whole = Selection(sample.tensors, worth, flops, flops, tail, part)
        return Side(tail, full, full, worth, whole, part=part)

    def _read(self, part: str) -> float:
        """Worth of reading a part, of what reading all is: as `worth` tells that of a tail."""
        rule = UNREAD[PARTS[part].share] * self._larger(part)
        whole = sum(one[WHOLE] for one in self.reading)
        known = [one[part] for one in self.reading if part in one]
        if len(known) < len(self.reading) or whole <= 0:
            return rule
        pairs = len(known)
        return (pairs * sum(known) / whole + BEFOREHAND * rule) / (pairs + BEFOREHAND)

    def _larger(self, part: str) -> float:
        """By how much a larger part of its kind is worth less than was known beforehand, if so."""
        own = PARTS[part]
        known = [
            name
            for name, one in PARTS.items()
            if one.which == own.which and one.share > own.share and self.reading
            and name in self.reading[0]
        ]  # fmt: skip
        if not known:
            return 1.0
        nearest = min(known, key=lambda name: PARTS[name].share)
        return min(1.0, self._read(nearest) / UNREAD[PARTS[nearest].share])

    def _halves(self, tail: Tail) -> tuple[Importance | None, Importance | None]:
        """Worth of each tensor by the pairs that sets are chosen by, and by those that judge."""
        mine = [values[tail] for values in self.measured if tail in values]
        middle = (len(mine) + 1) // 2
        by, other = _mean(mine[:middle]), _mean(mine[middle:])
        able = by is not None and other is not None and sum(other.values()) > 0
        promising = able and by is not None and any(value > 0 for value in by.values())
        return (by, other) if promising else (None, None)

    def worth(self, tail: Tail) -> float:
        """Of a step that trains everything through a tail, of what the whole step is worth.

        What was measured, weighed by its pairs, with what is known beforehand, which counts as
        `BEFOREHAND` pairs: two dozen rows tell it to a tenth.
        """
        if tail is None:
            return 1.0
        rule = UNMEASURED[tail < SHORT]
        found = self._told(tail)
        pairs = len(self.measured)
        return rule if found is None else (pairs * found + BEFOREHAND * rule) / (pairs + BEFOREHAND)

    def _told(self, tail: int) -> float | None:
        """What the probe says of a tail: as measured, or in between what was."""
        sums = {
            t: sum(_total(values[t]) for values in self.measured)
            for t in (self.measured[0] if self.measured else ())
        }
        if sums.get(None, 0.0) <= 0:
            return None
        known = {t: value / sums[None] for t, value in sums.items()}
        if tail in known:
            return known[tail]
        shorter = [t for t in known if t is not None and t < tail]
        longer = [t for t in known if t is None or t > tail]
        if not shorter:
            return None
        low = max(shorter)
        high = min(longer, key=lambda t: math.inf if t is None else t)
        span = math.log2((self._longest if high is None else high) + 1) - math.log2(low + 1)
        share = (math.log2(tail + 1) - math.log2(low + 1)) / span if span > 0 else 1.0
        return known[low] + min(1.0, share) * (known[high] - known[low])

    @property
    def _longest(self) -> int:
        """Prompt positions of the sample batch, about: the longest tail there is."""
        return max((t for t in self.controller.samples if t is not None), default=1) * 2

    def plain(self) -> list[dict[str, Any]]:
        """What was considered, as plain values: shares of the whole step's cost and worth."""
        full = self.controller.full_cost
        return [
            {
                "tail": one.tail,
                "part": one.part,
                "tensors": len(one.selection.names) if one.selection else None,
                "cost": one.cost / full,
                "value": one.value,
                "steps": round(one.steps, 2),
                "progress": one.progress,
                "chosen": one is self.considered[0],
            }
            for one in self.considered
        ]


def _mean(values: Sequence[Importance]) -> Importance | None:
    if not values:
        return None
    return {name: sum(one[name] for one in values) / len(values) for name in values[0]}


def _total(values: Importance) -> float:
    return sum(values.values())
