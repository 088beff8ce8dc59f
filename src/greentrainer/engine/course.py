"""How far a run has come and when it ends; and the choices of one that chooses its steps.

What `AdaptiveBackprop` is asked for by loops and Trainers that let it end the run.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import asdict, replace
from typing import Any, Literal

from greentrainer.energy import Consumption
from greentrainer.engine.chooser import Selector
from greentrainer.engine.controller import BALANCING, Controller
from greentrainer.engine.steps import Steps
from greentrainer.engine.worth_probe import WorthProbe
from greentrainer.model import Alone
from greentrainer.records import Entry, Ledger
from greentrainer.select import select, top_layers
from greentrainer.types import Batch, CostGraph, Selection

StepsAsked = Literal["all", "choose"]


class Course(ABC):
    """The part of an engine that knows how many steps are made.

    _steps: None where every step is made.
    """

    _steps: Steps | None
    _controller: Controller
    _worth: WorthProbe
    _ended: str | None = None
    _together: float = 0.0
    history: list[dict[str, Any]]
    processes: Alone
    consumption: Consumption

    @property
    @abstractmethod
    def selection(self) -> Selection | None:
        """What is trained now."""

    @property
    @abstractmethod
    def ledger(self) -> Ledger:
        """What has been spent so far."""

    @abstractmethod
    def _apply(self, chosen: Selection) -> None:
        """From now on this is trained."""

    def _choose_steps(self, given: list[Batch], steps: Steps) -> Selection:
        """Measure what steps are worth where the budget pays for it; choose what they train."""
        measured = self._worth.measure(given, steps)
        if measured is not None:
            steps.measured = measured
        self._meet()
        start = time.perf_counter()
        with self.processes.agreed():
            found = steps.choose()
        chosen: Selection = self.processes.first(found)
        self._agree()
        self._apply(chosen)
        seconds = time.perf_counter() - start
        self.ledger.add(Entry("select", seconds=seconds))
        own = measured[0].get(chosen.tail, {}) if measured else {}
        event = {
            "batch": self.ledger.batches,
            "asked": True,
            "seconds": seconds,
            "tail_saves_flops": self._controller.saved_by_tail(chosen),
            "optimum_at_most": None,
            "planned": self.planned,
            "alternatives": steps.plain(),
        }
        self.history.append({**event, **asdict(chosen), "importances": dict(own)})
        return chosen

    def _fit(self, graph: CostGraph, chosen: Selection, steps: Steps) -> None:
        """Train less in a step, the run's last, that is dearer than what is left."""
        basis = self._controller.of_last(graph, chosen.tail)
        budget = steps.fitting(chosen, basis)
        if budget is not None:
            top = top_layers(basis.graph, budget)
            self._apply(replace(top, tail=chosen.tail, part=chosen.part))

    def _fit_together(self, graph: CostGraph, chosen: Selection, steps: Steps) -> None:
        """The same where several processes each have a batch at hand: their mean has to fit.

        What is trained is the first one's choice, made smaller until it fits for all together.
        """
        self._meet()
        each = self._controller.plan.accumulate
        basis = self._controller.of_last(graph, chosen.tail)
        left, mean = self._controller.left() / each, self.processes.mean

        def told(names: Iterable[str]) -> float:
            return mean([basis.graph.forward_flops + basis.graph.backward_flops(names)])[0]

        if told(chosen.names) <= left:
            return
        room = left - mean([basis.graph.forward_flops])[0]
        for share in BALANCING:
            budget = max(share * room, basis.least)
            top = self.processes.first(top_layers(basis.graph, budget))
            if told(top.names) <= left or share == BALANCING[-1]:
                break
        with self.processes.changing():
            self._apply(replace(top, tail=chosen.tail, part=chosen.part))

    def _meet(self) -> None:
        """Where there are several processes, let all know what was used up to now."""
        if self.processes.agrees:
            self.consumption.agree(self.processes.every)

    def _agree(self) -> None:
        """All plan for as many batches as the first process."""
        plan = self._controller.plan
        total = self.processes.first(plan.total_batches)
        self._controller.plan = replace(plan, total_batches=total)

    @property
    def chooses_steps(self) -> bool:
        """Whether the number of steps is chosen."""
        return self._steps is not None

    @property
    def planned(self) -> int | None:
        """Batches that the run is going to make, as it looks now; None if that is not known."""
        return self._controller.plan.total_batches

    @property
    def finished(self) -> bool:
        """Whether no further step is to be made (`steps="choose"`)."""
        return self.ending is not None

    @property
    def rho_spent(self) -> float:
        """Share of full fine-tuning that was spent: of the batches so far, or of all asked for.

        By several processes together, as of the last `after_step`.
        """
        if self.processes.agrees:
            return self._together
        return self._own_share

    @property
    def _own_share(self) -> float:
        """What this process spent of its own part."""
        return self.ledger.rho_spent if self._steps is None else self._steps.spent_share

    @property
    def ending(self) -> str | None:
        """Why a run that chooses its steps has made its last; None while it has not.

        Of several processes it is told by `after_step`.
        """
        if self._steps is None or self.selection is None or self.processes.agrees:
            return self._ended
        return self._steps.ending(self.selection)

    @property
    def progress(self) -> float:
        """How far the run has come, from 0 to 1: what a schedule of learning rates goes by."""
        planned = self.planned
        return min(1.0, self.ledger.batches / planned) if planned else 0.0

    def after_step(self) -> None:
        """After each optimizer step of a run that chooses its steps: plan for what is left.

        Several processes call it in any run.
        """
        self._meet()
        if self._steps is not None and self.selection is not None:
            self._steps.replan(self.selection)
            self._agree()
            if self.processes.agrees:
                self._ended = self.processes.first(self._steps.ending(self.selection))
        self._share_out()

    def _share_out(self) -> None:
        """Where there are several processes, let all know what they spent together."""
        if self.processes.agrees and self.ledger.batches:
            full = self.ledger.full_flops if self._steps is None else 1.0
            self._together = self.processes.weighted([self._own_share], full)[0]


def require_choice(total: int | None, metric: str, selector: Selector) -> None:
    """Raise ValueError where the number of steps cannot be chosen."""
    if total is None:
        raise ValueError("steps are chosen in a run of known length: pass total_batches")
    if metric != "first_order" or selector is not select:
        raise ValueError("steps are chosen by first_order importance and the exact selector")
