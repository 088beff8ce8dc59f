"""What an engine hangs on a model, and what it knows of the sample batch before anything is chosen.

Made whole or not at all: what hangs on the model is taken off again by the stack it is given.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack

import torch
from torch import nn

from greentrainer.budget import Clock, set_clock, trials_of
from greentrainer.energy import Consumption
from greentrainer.engine.bookkeeper import Bookkeeper
from greentrainer.engine.graph_cache import GraphCache
from greentrainer.engine.prices import Prices
from greentrainer.engine.traces import Traces
from greentrainer.forward import SHORT_TAILS, ForwardOptions, ForwardSavings, Positions
from greentrainer.model import Alone, Freezer, OptimizerState
from greentrainer.records import Entry
from greentrainer.types import Batch, CostGraph, LossFn, Tail


class Instruments:
    """Freezer, savings, graphs, prices and books of a model in training.

    undo: gets what takes them off again.  trainable: names.  sample: a batch as in training.
    traces: where what is traced is kept.  short_tails: such are among the
    alternatives.  parts: of prompts that may be read alone.
    before_batch: called with the graph of each training batch, before its forward pass.

    samples, samples_read, whole: graphs of the sample batch with each tail, with each tail and
    part, and of plain full fine-tuning.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        loss_fn: LossFn | None,
        sample: Batch,
        undo: ExitStack,
        *,
        trainable: frozenset[str],
        optimizer_state: OptimizerState,
        processes: Alone,
        one_call: bool,
        hollow: nn.Module | None,
        forward: ForwardOptions | None,
        positions: Positions,
        short_tails: bool,
        parts: Sequence[str],
        traces: Traces | None,
        before_batch: Callable[[CostGraph], None],
    ) -> None:
        self.model, self.optimizer, self.loss_fn = model, optimizer, loss_fn
        self.freezer = Freezer(model, optimizer, trainable, optimizer_state)
        undo.callback(self.freezer.release)
        traced = hollow or model
        state = dict(traced.named_parameters())
        candidates = [state[name] for name in self.freezer.parameters]
        options = forward or ForwardOptions()
        self.savings = short = ForwardSavings(
            model, traced, options, positions, sample, loss_fn, processes
        )
        undo.callback(short.close)
        if short_tails:
            short.all_tails = SHORT_TAILS
        self.graphs = GraphCache(
            traced, candidates, loss_fn, one_call, self._enter_trace, short.traced_head,
            short.split, traces,
        )  # fmt: skip
        self.prices = Prices(short)
        self.bookkeeper = Bookkeeper(
            model, optimizer, self.graphs, before_batch, self.prices.of, short.leave,
            processes,
        )  # fmt: skip
        undo.callback(self.bookkeeper.close)
        if short.tried_flops:
            self.bookkeeper.ledger.add(Entry("trace", short.tried_flops))
        self.samples: Mapping[Tail, CostGraph] = short.samples(sample, self.graphs.of_batch)
        with short.at(None):
            self.whole = self.graphs.of_batch(sample)
        self.samples_read = short.samples_read(sample, self.graphs.of_batch, parts)
        if parts and not self.samples_read:
            warnings.warn("prompts are read whole: they cannot be split", stacklevel=4)
        short.go_to(list(self.samples)[-1])

    def _enter_trace(self, graph: CostGraph) -> None:
        """Tracing took real passes, with everything trainable and for each variant: all spent."""
        for passed in (graph, *(variant for _, variant in graph.variants)):
            spent = Entry("trace", passed.forward_flops, passed.full_backward_flops)
            self.bookkeeper.ledger.add(spent)

    def set_clock(
        self,
        batch: Batch,
        consumption: Consumption,
        lasting: Callable[[float, float], float],
    ) -> Clock:
        """Time a few passes of the sample batch.  lasting: as `budget.set_clock` takes it."""
        trials = trials_of(self.samples, self.savings.at)
        working = self.savings.processes.changing()
        with self.bookkeeper.unobserved(), self.savings.probing(), working:
            clock, spent = set_clock(
                self.model, self.optimizer, batch, self.loss_fn, trials, self.whole, consumption,
                lasting, self.savings.processes.first,
            )  # fmt: skip
        for entry in spent:
            self.bookkeeper.ledger.add(entry)
        return clock
