"""Adaptive backpropagation: tracing, probing, selecting and freezing, scheduled over a run.

    engine = AdaptiveBackprop(model, optimizer, batch, rho=0.5, total_batches=600, every=200)
    for batch in batches:
        if engine.due:
            engine.reselect(probe_batches)
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    print(engine.ledger.rho_spent)

The work is done by plain functions: `trace` says what a selection costs, `measure_importance` what
a tensor is worth, `select` chooses, `Freezer` applies, `SpendingPlan` says how much may be spent,
and `Bookkeeper` keeps the books.  This object only decides when each has its turn.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, replace
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
from torch import nn

from greentrainer.budget import (
    SLACK,
    TIMED_SLACK,
    Budget,
    Clock,
    SpendingPlan,
    slowest,
)
from greentrainer.energy import Consumption
from greentrainer.engine.chooser import Basis, Chooser, Selector
from greentrainer.engine.controller import Controller
from greentrainer.engine.course import Course, StepsAsked, require_choice
from greentrainer.engine.instruments import Instruments
from greentrainer.engine.prober import Prober
from greentrainer.engine.state import State
from greentrainer.engine.steps import Steps
from greentrainer.engine.traces import Traces
from greentrainer.engine.worth_probe import WorthProbe
from greentrainer.forward import ForwardOptions, Positions, tokens_of
from greentrainer.importance import metric_named
from greentrainer.model import Alone, OptimizerState, require_in_one_place
from greentrainer.records import Entry, Ledger
from greentrainer.select import select
from greentrainer.types import (
    Batch,
    CostGraph,
    Importance,
    LossFn,
    Prompts,
    Selection,
    loss_of,
    parts_of,
)

__all__ = ["AdaptiveBackprop", "Selector", "StepsAsked", "release"]


class AdaptiveBackprop(Course):
    """Trains a model within `rho` of full fine-tuning's FLOPs, probes included: the paper's method.

    model, optimizer: everything that may be trained requires a gradient and is in the optimizer.
    sample_batch: a batch as in training, tensors of (rows, length); selections are made for its
        shapes.
    rho: share of full fine-tuning's FLOPs, from `graph.smallest_rho()` to 1; or a `Budget` in
        another unit, which takes `total_batches`.
    loss_fn: `loss_fn(model, batch)`; by default `model(**batch).loss`.
    total_batches: training batches planned.  With it the cost of probes is spread over the run;
        without it, it is saved up again in the first few batches after each probe.
    every: training batches between selections; `due` then says when one is due.
    accumulate: training batches an optimizer step.
    metric: what tensors are chosen by, one of `scoring.METRICS`.
    optimizer_state: what becomes of a frozen tensor's state: keep, drop or offload.
    selector: chooses tensors; `select`, or a control to compare it with.  A `Blind` one has nothing
        measured.
    one_call: `loss_fn(model, batch)` calls the model once, with the batch as keywords.
    hollow: a copy of the model to trace in its place (`graphs.hollow`), where FSDP2 has cut the
        model into shards.
    forward: what may be left out of the forward pass.
    positions: of each prompt that gradient passes through: "all", so many before the completion, or
        "choose", with the tensors, by importance.
    steps: "all", every batch planned is trained on; or "choose", with tensors and positions: fewer
        and better ones where the budget goes further so.  `rho` is then a share of plain full
        fine-tuning of all `total_batches`; `finished` says when no further step is to be made.
    prompts: how much of each is read where steps are chosen: "whole", a part by its name
        (`types.PARTS`), or "choose".
    fresh: the first batches, of rows not seen before: those of one pass over the data.
    processes: `Together` or `Replicas` where several processes train the model; then call `prepare`
        before each step, in all of them.
    traces: a folder where what was traced of a model is kept from run to run.

    Its `graphs` are the cost graphs of the shapes met so far.

    A model has one engine: an older one that was not closed is, when the next is made.  Raises
    ValueError for an infeasible `rho` or a model with nothing to train.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        sample_batch: Batch,
        *,
        rho: float | Budget,
        loss_fn: LossFn | None = None,
        total_batches: int | None = None,
        every: int | None = None,
        accumulate: int = 1,
        metric: str = "first_order",
        optimizer_state: OptimizerState = "keep",
        selector: Selector = select,
        one_call: bool = False,
        hollow: nn.Module | None = None,
        forward: ForwardOptions | None = None,
        positions: Positions = "all",
        steps: StepsAsked = "all",
        prompts: Prompts = "whole",
        fresh: int | None = None,
        processes: Alone | None = None,
        traces: Traces | None = None,
    ) -> None:
        require_in_one_place(model)
        chooses = steps == "choose"
        if chooses:
            require_choice(total_batches, metric, selector)
        elif prompts != "whole":
            raise ValueError("prompts are read in part where steps are chosen: pass steps='choose'")
        parts = [part for part in parts_of(prompts) if part is not None]
        if parts and forward is not None and forward.keep != "nothing":
            raise ValueError("activations are kept of whole prompts: read them whole, or keep none")
        if positions == "choose" and metric != "first_order":
            raise ValueError(f"positions are chosen by first_order importance, not by {metric}")
        valued_by = metric_named(metric)
        self.model, self.optimizer, self.loss_fn = model, optimizer, loss_fn
        self.budget = rho if isinstance(rho, Budget) else Budget("rho", rho)
        self.consumption = self.budget.consumption or Consumption()
        self.clock: Clock | None = None
        self.processes = processes or Alone()
        self.closed = False
        release(model)
        slack = TIMED_SLACK if self.budget.timed else SLACK
        self.spending = SpendingPlan(1.0, total_batches, every, accumulate, slack)
        self.trainable = frozenset(n for n, p in model.named_parameters() if p.requires_grad)
        self._undo = ExitStack()
        try:
            self._steps: Steps | None = None
            made = Instruments(
                model, optimizer, loss_fn, sample_batch, self._undo, trainable=self.trainable,
                optimizer_state=optimizer_state, processes=self.processes, one_call=one_call,
                hollow=hollow, forward=forward, positions=positions, short_tails=chooses,
                parts=parts, traces=traces, before_batch=self._before_batch,
            )  # fmt: skip
            self._made, self._freezer, self._savings = made, made.freezer, made.savings
            self._prices, self._bookkeeper, self.graphs = made.prices, made.bookkeeper, made.graphs
            self.graph = list(made.samples.values())[-1]
            self._chooser = Chooser(selector, self._settle(sample_batch, steps, fresh, prompts))
            self._prober = Prober(
                model, optimizer, loss_fn, valued_by, self._bookkeeper, self._savings,
                self._controller, self.processes,
            )  # fmt: skip
            self._worth = WorthProbe(
                model, optimizer, loss_fn, self.graph.tensors, self._bookkeeper, self._savings,
                self._controller, self.processes,
            )  # fmt: skip
        except BaseException:
            self.close()
            raise
        self.history: list[dict[str, Any]] = []
        _LIVE[model] = ref(self)

    def _settle(
        self, sample_batch: Batch, steps: StepsAsked, fresh: int | None, prompts: Prompts
    ) -> float:
        """Translate the budget; returns the share of full fine-tuning that it comes to.

        Raises ValueError for one that is too small.
        """
        with self._savings.at(None):
            self.budget = budget = self.budget.told(self.graphs)
        budget.require_course(self.spending.total_batches)
        self._meet()
        if budget.timed:
            self.clock = self._clock_for(budget, sample_batch)
            self._meet()
        chooses = steps == "choose"
        made = self._made
        terms = budget.terms(
            self.clock, made.whole, self.spending, self.consumption, self.ledger, fixed=chooses,
            processes=self.processes.count,
        )  # fmt: skip
        terms = replace(terms, spent=self.processes.mean([terms.spent])[0])
        self.spending = replace(self.spending, rho=min(1.0, terms.share))
        self._controller = Controller(
            self.spending, made.samples, made.samples_read, made.whole, self.graphs,
            self.ledger, self.processes, self._savings, terms.cost_unit, self.consumption,
        )  # fmt: skip
        self._terms, self._bookkeeper.verifier.found = terms, self._corrected
        smallest, greatest = self._controller.smallest_rho(), self._controller.greatest_rho()
        total = self.spending.total_batches
        if chooses and total is not None:
            fresh = min(fresh or total, total)
            self._steps = Steps(self._controller, total, fresh, prompts=prompts)
            smallest *= self.spending.accumulate / total  # one step will do
        terms.require(*self.processes.mean([smallest, greatest]))
        return terms.rho

    def _clock_for(self, budget: Budget, sample_batch: Batch) -> Clock:
        """One set before that suits such batches, or a new one: the slowest process's."""
        given: Clock | None = self.processes.first(budget.clock)
        size = tokens_of(sample_batch)[1]
        if given is not None and self.processes.first(given.suits(size)):
            return given
        lasting = budget.lasting(self.consumption, self.spending.total_batches)

        def for_all(full: float, watts: float) -> float:
            return lasting(full, sum(self.processes.every(watts)))

        own = self._made.set_clock(sample_batch, self.consumption, for_all)
        return slowest(self.processes.every(own))

    def _corrected(self, ratio: float) -> None:
        """Graphs were found to tell wrong: from now on so much is spent for each FLOP they tell.

        Raises ValueError where nothing was trained yet and the budget is too small for that.
        """
        self._controller.cost_unit.correct(ratio)
        if self.ledger.batches <= self.spending.accumulate and self._steps is None:
            greatest = self._controller.greatest_rho() * ratio
            self._terms.require(self._controller.smallest_rho(), greatest)

    @property
    def rho(self) -> float:
        """Share of full fine-tuning that the run may spend, as it was at its start."""
        return self.spending.rho

    @property
    def selection(self) -> Selection | None:
        """What is trained now; None before the first choice."""
        return self._chooser.current

    @property
    def selector(self) -> Selector:
        """What chooses tensors."""
        return self._chooser.selector

    @property
    def importance(self) -> Importance:
        """Of each tensor measured, with gradient through as many positions as there is now."""
        measured = self._chooser.importance
        tail = self.selection.tail if self.selection else None
        return measured.get(tail, next(iter(measured.values()), {}))

    @property
    def ledger(self) -> Ledger:
        """What has been spent so far."""
        return self._bookkeeper.ledger

    @property
    def between_steps(self) -> bool:
        """Whether no batch of the optimizer step to come was seen yet."""
        return self._bookkeeper.between_steps

    @property
    def due(self) -> bool:
        """Whether a selection is due before the next batch."""
        if self.finished:
            return False
        asked = [event["batch"] for event in self.history if event["asked"]]
        return not asked or self.spending.due(self.ledger.batches, asked[-1])

    def reselect(self, batches: Iterable[Batch]) -> Selection:
        """Measure importance on `batches`, choose tensors within the budget, freeze the rest.

        In a run of known length only as many of the batches are used (at least one) as
        `PROBE_SHARE` of its budget pays for; where even one is too much, tensors are chosen anew by
        the importance at hand.  Call it between optimizer steps.

        Raises ValueError if there are no batches, the loss is not finite, no affordable tensor
        promises any gain, or the run is too short for its first probe.
        """
        given = list(batches)
        if not given:
            raise ValueError("no batch to measure importance on: pass at least one to reselect")
        self._freezer.wake()
        self._meet()
        with self.processes.changing():
            if self._steps is not None:
                return self._choose_steps(given, self._steps)
            if self._chooser.measures:
                shares = self.budget.unit == "rho" and not self.budget.timed
                needed = shares and not self._chooser.importance
                found = self._prober.probe(given, self.selection, needed)
                if found is not None:
                    self._chooser.importance = found
                self._meet()
            return self._choose(self._controller.bases(), self._controller.allowance(), asked=True)

    def prepare(self, probe_batches: Callable[[], Iterable[Batch]]) -> None:
        """Before each optimizer step: select if that is due, and keep the run on course.

        probe_batches: called for batches to measure on, where that is to be done.

        A loop in one process may do without: there the run is kept on course by itself.
        """
        plans = self._steps is None and self.processes.agrees
        if self.due:
            self.reselect(probe_batches())
        elif plans and self.selection and self._chooser.ready:
            self._meet()
            bases = self._controller.bases()
            allowance = self.processes.first(self._course(self.selection, bases))
            if allowance is not None:
                with self.processes.changing():
                    self._choose(bases, allowance, asked=False)

    def loss(self, batch: Batch) -> Any:
        """The training loss of a batch; the same as computing it yourself.

        Needed with a `loss_fn` and batches of varying shape: it tells the engine what the batch is.
        """
        with self.batch(batch):
            return loss_of(self.model, batch, self.loss_fn)

    def batch(self, batch: Batch) -> AbstractContextManager[None]:
        """A context in which all forward passes belong to the loss of this batch.

        Several processes that choose their steps need it around each, to fit the last to what is
        left.
        """
        several = self.processes.agrees and self.between_steps
        if several and self._steps is not None and self.selection is not None:
            self._fit_together(self.graphs.of_batch(batch), self.selection, self._steps)
        return self._bookkeeper.one_batch(batch, self._freezer.hold)

    def add_within(self, flops: int, batches: int = 1) -> None:
        """Enter what a step executes besides training, and would in full fine-tuning.

        flops: so many FLOPs of this process.
        batches: that it will do for, as generated examples that several steps train on.

        Raises ValueError where nothing was trained yet and too little is left for training.
        """
        self.ledger.add(Entry("within", forward_flops=flops, full_flops=flops))
        self._controller.served += batches
        if not self.ledger.batches and self._steps is None:
            self._terms.require(self._controller.smallest_rho(), 1.0)

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on: plain values, fit for JSON."""
        return State(
            self.budget,
            self.clock,
            self.consumption.so_far(),
            self.trainable,
            self.selection,
            self._chooser.importance,
            self.history,
            self.ledger.state_dict(),
            self._steps.measured if self._steps else (),
            self._steps.reading if self._steps else (),
            self._bookkeeper.verifier.state,
        ).plain()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict()`: the same selection and books.  The plan is this engine's own.

        Raises ValueError for the state of another model, another rho or another version.
        """
        saved = State.of(state)
        saved.require_fit(self.budget, self.trainable)
        self.consumption.go_on(saved.used, self.processes.rank == 0)
        self._meet()
        self.ledger.load_state_dict(saved.ledger)
        self._chooser.importance = dict(saved.importance)
        self.history = list(saved.history)
        self._chooser.turn = sum(event["asked"] for event in self.history) - 1
        if saved.selection is not None:
            if not self._controller.knows(saved.selection):
                raise ValueError("engine state was written with other positions or prompts")
            with self.processes.changing():
                self._apply(saved.selection)
        self._bookkeeper.verifier.go_on(saved.verified)
        if self._steps is not None:
            self._steps.measured, self._steps.reading = saved.worth, saved.reading
            self.after_step()
        self._share_out()

    def close(self) -> None:
        """Make everything trainable again and leave the model as it came; once is enough."""
        if not self.closed:
            self.closed = True
            self._undo.close()

    def __enter__(self) -> "AdaptiveBackprop":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    # Choosing

    def _choose(self, bases: list[Basis], allowance: float, asked: bool) -> Selection:
        """Select by the importance at hand, and freeze the rest.  allowance: FLOPs of a batch."""
        start = time.perf_counter()
        self._chooser.turn += asked
        with self.processes.agreed():
            found = self._chooser.best(bases, allowance)
        agreed: Selection = self.processes.first(found)
        self._controller.allowed = allowance
        self._apply(agreed, asked)
        seconds = time.perf_counter() - start
        self.ledger.add(Entry("select", seconds=seconds))
        event = {
            "batch": self.ledger.batches,
            "asked": asked,
            "seconds": seconds,
            "tail_saves_flops": self._controller.saved_by_tail(agreed),
            "optimum_at_most": self._chooser.optimum_at_most(bases, allowance, agreed),
        }
        importance = dict(self.importance) if asked else {}
        self.history.append({**event, **asdict(agreed), "importances": importance})
        return agreed

    def _course(self, chosen: Selection, bases: list[Basis]) -> float | None:
        """What to choose anew by, without a probe, or None while the run is on course."""
        basis = next(one for one in reversed(bases) if one.tail == chosen.tail)
        return self._controller.course(chosen, basis, self._chooser.selected)

    def _apply(self, chosen: Selection, asked: bool = True) -> None:
        self._chooser.current = chosen
        self._bookkeeper.verifier.selected(chosen, asked)
        self._prices.select(chosen.names)
        sample = self._controller.sample_of(chosen.tail, chosen.part)
        self._freezer.apply(chosen.names, sample.idle_modules(chosen.names))
        self._savings.go_to(chosen.tail, chosen.part)
        self._savings.select(sample, chosen.names)

    def _before_batch(self, graph: CostGraph) -> None:
        alone = not self.processes.agrees and self._bookkeeper.between_steps
        if self._steps is not None:
            if alone and self.selection:
                self._fit(graph, self.selection, self._steps)
        elif alone and self.selection and self._chooser.ready:
            last, tail = self.spending.last(self.ledger.batches), self.selection.tail
            bases = [self._controller.of_last(graph, tail)] if last else self._controller.bases()
            allowance = self._course(self.selection, bases)
            if allowance is not None:
                self._choose(bases, allowance, asked=False)
        self._freezer.hold()
        self._freezer.silence()


_LIVE: WeakKeyDictionary[nn.Module, "ref[AdaptiveBackprop]"] = WeakKeyDictionary()
"""The engine of each model; its hooks keep it alive until it is closed."""


def release(model: nn.Module) -> None:
    """Close the engine that a model still has, if any, as after a training that broke off."""
    older = _LIVE[model]() if model in _LIVE else None
    if older is not None:
        older.close()
