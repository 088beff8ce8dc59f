"""What the next choice may cost: the plan of the run held against its books.

`SpendingPlan` says which share of full fine-tuning the coming batches may cost; here that becomes
an allowance for a batch, for selections, for probes, and for the last step, which has to fit.  All
of it is counted in the run's unit of cost: FLOPs, or seconds or what else a clock tells.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from greentrainer.budget import CostUnit, SpendingPlan
from greentrainer.energy import Consumption
from greentrainer.engine.chooser import Basis
from greentrainer.engine.graph_cache import GraphCache
from greentrainer.forward import ForwardSavings
from greentrainer.model import Alone
from greentrainer.records import Ledger
from greentrainer.types import Batch, CostGraph, Selection, Tail

PROBE_SHARE = 0.1
"""Share of a run's budget that its probes may take, as far as one batch each allows."""
BALANCING = (1.0, 0.98, 0.95, 0.9, 0.8, 0.6, 0.3, 0.0)
"""Shares of what seems left that are tried for the last step, until it fits."""

Reached = Mapping[Tail, tuple[str, ...]]
"""For each tail the tensors whose importance is measured."""


@dataclass
class Controller:
    """samples: for each tail, shortest first, the graph of the sample batch.

    samples_read: the same for each tail and part of prompts that may be read alone.
    plan: of spending; its `rho` gives way to what the unit of cost has in all, if that is fixed.
    whole: its graph with gradient through all positions.
    consumption: of the run; where the grid's intensity is to change, it says when to spend more.
    served: batches that what was done within steps so far will do for.
    passes: of a probe.  allowed: what a batch might cost when the last choice was made.
    """

    plan: SpendingPlan
    samples: Mapping[Tail, CostGraph]
    samples_read: Mapping[tuple[int, str], CostGraph]
    whole: CostGraph
    graphs: GraphCache
    ledger: Ledger
    processes: Alone
    savings: ForwardSavings
    cost_unit: CostUnit
    consumption: Consumption
    served: int = 0
    passes: int = 1
    allowed: float | None = None
    _began: tuple[int, float] | None = field(default=None, init=False)
    """Batches done before this process's first, and when that began."""

    @cached_property
    def prices(self) -> dict[Tail, CostGraph]:
        """What the samples cost."""
        return {tail: self.cost_unit.price(graph) for tail, graph in self.samples.items()}

    @property
    def full_cost(self) -> int:
        """Of plain full fine-tuning on the sample batch."""
        return next(iter(self.prices.values())).full_flops

    @property
    def spending(self) -> SpendingPlan:
        """The plan as it stands: what is left may have to do for more or less than was thought."""
        total = self.cost_unit.total
        if total is None or self.plan.total_batches is None:
            return self.plan
        done = self._books()[1]
        return replace(self.plan, rho=total / (done + self._ahead(done)))

    def _ahead(self, done: float) -> float:
        """Plain full fine-tuning of the batches to come, after what was done."""
        batches, total = self.ledger.batches, self.plan.total_batches or 0
        left = total - batches
        if left <= 0:
            return 0.0
        mean = done / batches if batches else self.full_cost
        known = self.cost_unit.whole - done
        return known if self.cost_unit.known and known > 0 else left * mean

    def smallest_rho(self) -> float:
        """The smallest share of full fine-tuning at which coming batches can train anything."""
        smallest = self._smallest_told() * self.cost_unit.correction
        mean, within = self.full_cost, self._within()
        return (smallest * mean + within) / (mean + within)

    def _smallest_told(self) -> float:
        """The same of training alone, as graphs tell it."""
        return min(self._expected(graph).smallest_rho() for graph in self.prices.values())

    def _within(self) -> float:
        """What a batch holds besides its training, whatever is chosen."""
        return self.cost_unit.within(self.ledger) / max(self.ledger.batches, self.served, 1)

    def greatest_rho(self) -> float:
        """The share of full fine-tuning that coming batches cost with everything trained."""
        graphs = [self._expected(graph) for graph in self.prices.values()]
        return max((g.forward_flops + g.full_backward_flops) / g.full_flops for g in graphs)

    def bases(self) -> list[Basis]:
        """What a choice can be made on, for each tail.

        First such that what is kept stays true, then with all tensors; the longest tail last.
        """
        standing, anew = [], []
        for tail, graph in self.prices.items():
            real, among = self.samples[tail], self.savings.lasting(graph)
            priced = graph is not real
            anew.append(Basis(self._expected(graph), real, None, tail, priced))
            if among is not None:
                kept = self._expected(graph, standing=True)
                standing.append(Basis(kept, real, among, tail, priced))
        return [*standing, *anew]

    def of_last(self, graph: CostGraph, tail: Tail) -> Basis:
        """What the last step's choice is made on: nothing kept will be used after it."""
        price = self.cost_unit.price(graph)
        among = self.savings.lasting(price)
        return Basis(self._expected(price, standing=True), graph, among, tail, price is not graph)

    def _expected(self, graph: CostGraph, standing: bool = False) -> CostGraph:
        """What coming batches will cost, if activations are kept from now on."""
        total = self.plan.total_batches
        left = 0 if total is None else total - self.ledger.batches
        return self.savings.expected(graph, left, standing)

    def _books(self) -> list[float]:
        """What was spent so far, what full fine-tuning would have, and what the last probe took."""
        batches, cost_unit = self.ledger.batches, self.cost_unit
        full = cost_unit.full(self.ledger.full_flops, batches)
        probe = cost_unit.last_probe(self.ledger)
        return list(self.processes.mean([cost_unit.spent(self.ledger), full, probe]))

    def rate(self, reserve: float = 0.0) -> float:
        """Share of full fine-tuning that the next batches may cost, with `reserve` kept."""
        batches = self.ledger.batches
        spent, full, _ = self._books()
        mean = full / batches if batches else self.full_cost
        if self.cost_unit.total is not None:
            mean = self._ahead(full) / max(1, (self.plan.total_batches or 0) - batches) or mean
        within = self._within()
        if within and not batches:
            mean += within
        even = self.spending.rate(batches, spent + reserve, full, mean)
        if within:  # it is done whatever is chosen, so training alone gets less than its share
            even = (even * mean - within) / (mean - within)
        even /= self.cost_unit.correction
        tilt = self._tilt(self.spending.horizon(batches))
        if tilt == 1:
            return even
        floor = self._smallest_told()  # what is above it can be moved from one time to another
        return floor + (even - floor) * tilt if even > floor else even

    def _tilt(self, left: int) -> float:
        """By how much more than on average the next of so many batches may cost.

        How long they will take is told by the batches since the run began, with all that lies
        between them: evaluation, later probes, and waiting for data.
        """
        if self.plan.rho == 1 or not self.consumption.moves:
            return 1.0
        batches, now = self.ledger.batches, self.consumption.clock()
        if self._began is None or batches == self._began[0]:  # the first probe is not over yet
            self._began = batches, now
            return 1.0
        first, start = self._began
        return self.consumption.tilt(left * (now - start) / (batches - first))

    def allowance(self) -> float:
        """What a batch like the sample may cost: little or below 0 in debt.

        What the probes still to come will cost, each as much as the last, is kept.
        """
        probes = self.plan.probes_left(self.ledger.batches)
        return self.rate(self._books()[2] * probes) * self.full_cost

    # For a run that chooses its number of steps

    def left(self) -> float:
        """What may still be spent."""
        return self.cost_unit.left(self._books()[0])

    def spent_and_full(self) -> tuple[float, float]:
        """What was spent so far, and what full fine-tuning would have spent."""
        spent, full, _ = self._books()
        return spent, full

    def mean_ahead(self, asked: int) -> float:
        """Plain full fine-tuning of an average batch to come, of so many in all.

        Where there are several processes, all ask, as for all that comes from their books.
        """
        batches, done = self.ledger.batches, self._books()[1]
        ahead = self.cost_unit.whole - done
        if self.cost_unit.known and ahead > 0 and asked > batches:
            return ahead / (asked - batches)
        return done / batches if batches else float(self.full_cost)

    def sample_of(self, tail: Tail, part: str | None) -> CostGraph:
        """The graph of the sample batch with this tail and so much of its prompts read."""
        return self.samples[tail] if tail is None or not part else self.samples_read[tail, part]

    def knows(self, chosen: Selection) -> bool:
        """Whether there is a sample for its tail and its part."""
        way = chosen.tail, chosen.part
        return chosen.tail in self.samples if way[1] is None else way in self.samples_read

    def expected_price(self, tail: Tail, part: str | None = None) -> CostGraph:
        """What coming batches cost, as far as can be told from the sample."""
        if part is None:
            return self._expected(self.prices[tail], standing=True)
        return self.cost_unit.price(self.sample_of(tail, part))

    def saved_by_tail(self, chosen: Selection) -> int:
        """FLOPs of the sample batch that its tail saves, the same tensors trained."""
        whole, own = self.whole, self.sample_of(chosen.tail, chosen.part)
        spared = whole.forward_flops - own.forward_flops
        return spared + whole.backward_flops(chosen.names) - own.backward_flops(chosen.names)

    def probe_batches(self, given: list[Batch]) -> int:
        """How many of the given batches this probe's part of `PROBE_SHARE` pays for.

        Of all that the processes were given, where there are several.
        """
        total, count = self.plan.total_batches, self.processes.count
        if total is None:
            return count * len(given)
        bases = self.bases()
        narrow = [basis for basis in bases if basis.tail == bases[0].tail]
        names = self._affordable(narrow, self.spending.rho)
        one = self.probe_cost(given[:1], names)
        probes = 1 + self.plan.probes_left(0)
        allowed = PROBE_SHARE * self.spending.rho * total * self.full_cost / probes
        most = count * len(given)
        return max(1, min(most, int(count * allowed / one))) if one else most

    def reachable(self, probe: list[Batch], current: Selection | None) -> Reached:
        """Tensors worth probing: those that an affordable selection may hold.

        Tails are weighed at the first selection, if that takes no more than `PROBE_SHARE` of the
        budget; later ones keep to the tail in force.  None, where every tensor can be trained
        through the longest: there is nothing to choose then, and nothing is spent on choosing.
        """
        bases = self.bases()
        if self.processes.first(bases[-1].allows_everything(self.rate() * self.full_cost)):
            return {}
        names = self._settled(probe, self._weighed(bases, current))
        total = self.plan.total_batches
        if total is not None and self.processes.first(len(names) > 1):
            allowed = PROBE_SHARE * self.spending.rho * total * self.full_cost
            dear = self.probe_cost(probe, names) > allowed
            if self.processes.first(dear):  # of their own batches processes may think otherwise
                rule = self._by_rule(bases)
                names = self._settled(probe, [b for b in bases if b.tail == rule])
        now = self.rate() * self.full_cost
        able = any(basis.tail in names and basis.allows_everything(now) for basis in bases)
        return {} if len(names) == 1 and able else names

    def _by_rule(self, bases: list[Basis]) -> Tail:
        """The longest tail with which every tensor can be trained, or else the shortest."""
        allowed = self.rate() * self.full_cost
        unlimited = [basis.tail for basis in bases if basis.allows_everything(allowed)]
        return unlimited[-1] if unlimited else bases[0].tail

    def _weighed(self, bases: list[Basis], current: Selection | None) -> list[Basis]:
        """Bases of tails worth weighing: the shortest, that by the rule, the next, and all."""
        tails = list(self.samples)
        if current is not None:
            return [basis for basis in bases if basis.tail == current.tail]
        at = tails.index(self._by_rule(bases))
        wanted = {tails[0], *tails[at : at + 2], tails[-1]}
        return [basis for basis in bases if basis.tail in wanted]

    def _settled(self, probe: list[Batch], bases: list[Basis]) -> Reached:
        """Tensors within reach.

        The probe lowers the budget that says what it is worth probing; a few rounds settle it.
        """
        if self.plan.total_batches is None:
            return self._affordable(bases, self.spending.rho)
        left = 1 + self.plan.probes_left(self.ledger.batches)
        names = self._affordable(bases, self.rate())
        for _ in range(2):
            price = self.probe_cost(probe, names)
            names = self._affordable(bases, self.rate(left * price))
        return names

    def _affordable(self, bases: list[Basis], rate: float) -> Reached:
        """Tensors that a choice on one of the bases may hold, at this share of full fine-tuning."""
        found: dict[Tail, set[str]] = {tail: set() for tail in self.samples}
        least = min(basis.cheapest for basis in bases)
        for basis in bases:
            allowed = max(rate * self.full_cost, least) - basis.graph.forward_flops
            able = basis.graph.affordable(allowed)
            found[basis.tail] |= set(able if basis.among is None else basis.among & set(able))
        return {
            tail: tuple(name for name in self.samples[tail].tensors if name in names)
            for tail, names in found.items()
            if names
        }

    def leaves_room(self, probe: list[Batch], names: Reached) -> bool:
        """Whether the rest of the run can stay within rho once this probe is paid."""
        if self.plan.total_batches is None:
            return True
        rate = self.rate(self.probe_cost(probe, names))
        return any(rate * self.full_cost >= basis.cheapest for basis in self.bases())

    def probe_flops(self, probe: list[Batch], names: Reached) -> tuple[int, int]:
        """Forward and backward FLOPs of measuring the importance of `names`."""
        return self._of_probe(probe, names, lambda graph: graph)

    def probe_cost(self, probe: list[Batch], names: Reached) -> int:
        """The same in the run's unit of cost, both passes together: the mean of all processes."""
        own = sum(self._of_probe(probe, names, self.cost_unit.price))
        return round(self.processes.mean([own])[0]) if self.processes.count > 1 else own

    def _of_probe(
        self, probe: list[Batch], names: Reached, price: Callable[[CostGraph], CostGraph]
    ) -> tuple[int, int]:
        forward = backward = 0
        for tail, probed in passes_of(names).items():
            with self.savings.at(tail):
                graphs = [price(self.graphs.of_batch(batch)) for batch in probe]
            forward += sum(graph.forward_flops for graph in graphs)
            backward += sum(graph.backward_flops(probed) for graph in graphs)
        return self.passes * forward, self.passes * backward

    def course(
        self, chosen: Selection, basis: Basis, chooses: Callable[[Basis, float], Selection]
    ) -> float | None:
        """The allowance to choose anew by, or None while the run is on course with `chosen`.

        Batches that turn out dearer or cheaper than planned take it off.  basis: of the batch at
        hand where it belongs to the last step, which has to fit what is left.  chooses: what would
        be selected within a backward budget.
        """
        last = self.plan.last(self.ledger.batches)
        if last:
            return self._balanced(chosen, basis, last, chooses)
        sample, full = self.prices[chosen.tail], self.full_cost
        now = self._expected(sample, standing=True)
        allowed = self.allowance()
        current = now.forward_flops + now.backward_flops(chosen.names)
        if self.spending.off_course(self.ledger.batches, allowed / full, current / full):
            before = self.allowed or sample.forward_flops + chosen.backward_budget
            if current > allowed or allowed > before + 0.01 * full:
                return allowed
        return None

    def _balanced(
        self,
        chosen: Selection,
        basis: Basis,
        left: int,
        chooses: Callable[[Basis, float], Selection],
    ) -> float | None:
        """The allowance at which the last step's batches fit what is left, None if they do so now.

        The batch at hand is known, others of the step are taken to be like it, of the dearest size
        met so far.
        """
        graph = basis.graph
        spent, full, _ = self._books()
        rho = self.spending.rho
        room = rho * full - spent

        def beyond(one: CostGraph, names: Iterable[str]) -> float:
            told = one.forward_flops + one.backward_flops(names)
            return self.cost_unit.correction * told - rho * one.full_flops

        met = [self.cost_unit.full(entry.full_flops, 1) for entry in self.ledger]
        dearest = max([*met, graph.full_flops])

        def fits(names: Iterable[str]) -> bool:
            mine = beyond(graph, names)
            return mine + (left - 1) * max(mine, 0.0) * dearest / graph.full_flops <= room

        if fits(chosen.names):
            return None
        least = min(graph.closure_flops.values())
        most = max(least, room / left + graph.backward_budget(rho))
        budgets = [least + share * (most - least) for share in BALANCING]
        fitting = (b for b in budgets if fits(chooses(basis, b).names))
        return graph.forward_flops + next(fitting, budgets[-1])


def passes_of(names: Reached) -> dict[Tail, tuple[str, ...]]:
    """The passes that measuring takes, and the tensors whose gradients each gives.

    Several tails are judged by the whole gradient, so that takes a pass of its own.
    """
    if len(names) < 2:
        return dict(names)
    judged = dict.fromkeys(name for probed in names.values() for name in probed)
    return {
        None: tuple(judged),
        **{tail: probed for tail, probed in names.items() if tail is not None},
    }
