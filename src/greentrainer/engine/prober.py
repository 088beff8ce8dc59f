"""The probe: importance is measured of what may be chosen, as far as the budget pays for it."""

import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from greentrainer.engine.bookkeeper import Bookkeeper
from greentrainer.engine.controller import Controller, Reached, passes_of
from greentrainer.forward import ForwardSavings
from greentrainer.importance import Metric, measure_tails
from greentrainer.model import Alone
from greentrainer.records import Entry
from greentrainer.types import Batch, Importance, LossFn, Selection, Tail


@dataclass(frozen=True)
class Prober:
    """Measures the importance of a model's tensors.

    metric: what importance is.
    bookkeeper: of training, which a probe is not; what it costs is entered in its ledger.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    loss_fn: LossFn | None
    metric: Metric
    bookkeeper: Bookkeeper
    savings: ForwardSavings
    controller: Controller
    processes: Alone

    def probe(
        self, given: list[Batch], current: Selection | None, needed: bool
    ) -> dict[Tail, Importance] | None:
        """Importance of what may be chosen, for each tail that may be.

        given: batches, of which as many are used as the budget pays for.  current: the selection in
        force.  needed: without a measurement no choice can be made.

        None where everything can be trained, or where a probe would leave no room for a choice.
        Raises ValueError for the latter if it is needed.
        """
        controller, first = self.controller, self.processes.first
        controller.passes = self.metric.passes
        batches = given[: self.processes.part(first(controller.probe_batches(given)))]
        reachable = first(controller.reachable(batches, current))
        if not reachable:
            return None
        if first(controller.leaves_room(batches, reachable)):
            return self._measured(batches, reachable)
        if needed:
            plan = controller.plan
            raise ValueError(
                f"{plan.total_batches} batches at rho {plan.rho:g} leave no room "
                "to measure importance: train on more batches, in smaller ones, or raise rho"
            )
        return None

    def _measured(self, batches: list[Batch], names: Reached) -> dict[Tail, Importance]:
        """The importance of `names`, all processes' mean; what it cost is entered."""
        start = time.perf_counter()
        with self.bookkeeper.unobserved(), self.savings.probing():
            measured = self._scores(batches, names)
        agreed: dict[Tail, Importance] = {
            tail: dict(zip(own, self.processes.mean(list(own.values())), strict=True))
            for tail, own in measured.items()
        }
        flops = self.controller.probe_flops(batches, names)
        self.bookkeeper.ledger.add(Entry("probe", *flops, seconds=time.perf_counter() - start))
        return agreed

    def _scores(self, batches: list[Batch], names: Reached) -> Mapping[Tail, Importance]:
        model, optimizer, loss_fn, at = self.model, self.optimizer, self.loss_fn, self.savings.at
        if len(names) > 1:
            return measure_tails(model, batches, optimizer, loss_fn, passes_of(names), at)
        [(tail, probed)] = names.items()
        with at(tail):
            return {tail: self.metric.measure(model, batches, optimizer, loss_fn, probed)}
