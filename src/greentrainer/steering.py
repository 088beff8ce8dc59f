"""What the next choice may cost: the plan of the run held against its books.

`Pace` says which share of full fine-tuning the coming batches may cost; here that becomes a budget
in FLOPs on a cost graph, for selections, for probes, and for the last step, which has to fit.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from greentrainer.graphs import GraphCache
from greentrainer.ledger import Ledger
from greentrainer.pace import Pace
from greentrainer.processes import Alone
from greentrainer.shortening import Shortening
from greentrainer.types import Batch, CostGraph, Importance, Selection

PROBE_SHARE = 0.1
"""Share of a run's budget that its probes may take, as far as one batch each allows."""
BALANCING = (1.0, 0.98, 0.95, 0.9, 0.8, 0.6, 0.3, 0.0)
"""Shares of what seems left that are tried for the last step, until it fits."""


@dataclass(frozen=True)
class Basis:
    """What a choice is made on.

    graph: what it will cost.  real: what a batch costs of which no activations are known.
    among: the tensors that may be chosen; all when None.
    """

    graph: CostGraph
    real: CostGraph
    among: frozenset[str] | None = None

    @property
    def least(self) -> int:
        """Backward FLOPs of the cheapest tensor that may be chosen."""
        closures = self.graph.closure_flops
        return min(closures[n] for n in closures if self.among is None or n in self.among)

    def worth(self, importance: Importance) -> Importance:
        """The importance of what may be chosen."""
        if self.among is None:
            return importance
        return {name: value for name, value in importance.items() if name in self.among}


@dataclass
class Steering:
    """sample: the graph of the sample batch.  passes: of a probe.

    allowed: FLOPs a batch might cost when the last choice was made.
    """

    pace: Pace
    sample: CostGraph
    graphs: GraphCache
    ledger: Ledger
    processes: Alone
    shortening: Shortening
    passes: int = 1
    allowed: float | None = None

    @property
    def graph(self) -> CostGraph:
        """What coming batches will cost, if activations are kept from now on."""
        return self._expected(self.sample)

    def bases(self) -> list[Basis]:
        """What a choice can be made on: with all tensors, or such that what is kept stays true."""
        among = self.shortening.lasting(self.sample)
        anew = Basis(self.graph, self.sample)
        if among is None:
            return [anew]
        return [Basis(self._expected(self.sample, standing=True), self.sample, among), anew]

    def of_last(self, graph: CostGraph) -> Basis:
        """What the last step's choice is made on: nothing kept will be used after it."""
        among = self.shortening.lasting(graph)
        return Basis(self._expected(graph, standing=True), graph, among)

    def _expected(self, graph: CostGraph, standing: bool = False) -> CostGraph:
        total = self.pace.total_batches
        left = 0 if total is None else total - self.ledger.batches
        return self.shortening.expected(graph, left, standing)

    def rate(self, reserve: float = 0.0) -> float:
        """Share of full fine-tuning that the next batches may cost, with `reserve` FLOPs kept."""
        batches = self.ledger.batches
        spent, full = self.processes.mean([self.ledger.spent_flops, self.ledger.full_flops])
        mean = full / batches if batches else self.sample.full_flops
        return self.pace.rate(batches, spent + reserve, full, mean)

    def budget(self) -> float:
        """Backward FLOPs that a selection may cost on the sample batch: few or below 0 in debt.

        What the probes still to come will cost, each as much as the last, is kept.
        """
        reserve = self.ledger.last_probe_flops * self.pace.probes_left(self.ledger.batches)
        return self.graph.backward_budget(self.rate(reserve))

    @property
    def _least(self) -> int:
        return min(self.graph.closure_flops.values())

    def probe_batches(self, given: list[Batch]) -> int:
        """How many of the given batches this probe's part of `PROBE_SHARE` pays for."""
        total = self.pace.total_batches
        if total is None:
            return len(given)
        names = self.graph.affordable(max(self.graph.backward_budget(self.pace.rho), self._least))
        one = sum(self.probe_flops(given[:1], names))
        probes = 1 + self.pace.probes_left(0)
        allowed = PROBE_SHARE * self.pace.rho * total * self.graph.full_flops / probes
        return max(1, min(len(given), int(allowed / one)))

    def reachable(self, probe: list[Batch]) -> tuple[str, ...]:
        """Tensors worth probing: those that an affordable selection may hold.

        The probe lowers the budget that says what it is worth probing; a few rounds settle it.
        """
        if self.pace.total_batches is None:
            return self.graph.affordable(self.graph.backward_budget(self.pace.rho))
        left = 1 + self.pace.probes_left(self.ledger.batches)
        bases = self.bases()
        names = self._affordable(bases, self.rate())
        for _ in range(2):
            price = sum(self.probe_flops(probe, names))
            names = self._affordable(bases, self.rate(left * price))
        return names

    def _affordable(self, bases: list[Basis], rate: float) -> tuple[str, ...]:
        """Tensors that a choice on one of the bases may hold, at this share of full fine-tuning."""
        found: set[str] = set()
        for basis in bases:
            budget = basis.graph.backward_budget(rate)
            able = basis.graph.affordable(max(budget, self._least))
            found |= set(able) if basis.among is None else basis.among.intersection(able)
        return tuple(name for name in self.sample.tensors if name in found)

    def leaves_room(self, probe: list[Batch], names: tuple[str, ...]) -> bool:
        """Whether the rest of the run can stay within rho once this probe is paid."""
        if self.pace.total_batches is None:
            return True
        rate = self.rate(sum(self.probe_flops(probe, names)))
        return any(basis.graph.backward_budget(rate) >= self._least for basis in self.bases())

    def probe_flops(self, probe: list[Batch], names: tuple[str, ...]) -> tuple[int, int]:
        """Forward and backward FLOPs of measuring the importance of `names`."""
        graphs = [self.graphs.of_batch(batch) for batch in probe]
        forward = sum(graph.forward_flops for graph in graphs)
        backward = sum(graph.backward_flops(names) for graph in graphs)
        return self.passes * forward, self.passes * backward

    def course(
        self, chosen: Selection, basis: Basis, chooses: Callable[[Basis, float], Selection]
    ) -> float | None:
        """The budget to choose anew by, or None while the run is on course with `chosen`.

        Batches that turn out dearer or cheaper than planned take it off.  basis: of the batch at
        hand where it belongs to the last step, which has to fit what is left.  chooses: what would
        be selected within a budget.
        """
        last = self.pace.last(self.ledger.batches)
        if last:
            return self._balanced(chosen, basis, last, chooses)
        graph, now = self.graph, self._expected(self.sample, standing=True)
        budget = self.budget()
        current = now.forward_flops + now.backward_flops(chosen.names)
        allowed = graph.forward_flops + budget
        full = self.sample.full_flops
        if self.pace.off_course(self.ledger.batches, allowed / full, current / full):
            before = self.allowed or self.sample.forward_flops + chosen.backward_budget
            if current > allowed or allowed > before + 0.01 * full:
                return budget
        return None

    def _balanced(
        self,
        chosen: Selection,
        basis: Basis,
        left: int,
        chooses: Callable[[Basis, float], Selection],
    ) -> float | None:
        """The budget at which the last step's batches fit what is left, None if they do as it is.

        The batch at hand is known, others of the step are taken to be like it, of the dearest size
        met so far.
        """
        graph = basis.graph
        spent, full = self.processes.mean([self.ledger.spent_flops, self.ledger.full_flops])
        room = self.pace.rho * full - spent

        def beyond(one: CostGraph, names: Iterable[str]) -> float:
            return one.forward_flops + one.backward_flops(names) - self.pace.rho * one.full_flops

        dearest = max([entry.full_flops for entry in self.ledger] + [graph.full_flops])

        def fits(names: Iterable[str]) -> bool:
            mine = beyond(graph, names)
            return mine + (left - 1) * max(mine, 0.0) * dearest / graph.full_flops <= room

        if fits(chosen.names):
            return None
        least = min(graph.closure_flops.values())
        most = max(least, room / left + graph.backward_budget(self.pace.rho))
        budgets = [least + share * (most - least) for share in BALANCING]
        return next((b for b in budgets if fits(chooses(basis, b).names)), budgets[-1])
