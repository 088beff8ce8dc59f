"""Cost graphs by shape: each shape of batch is traced once, and what that tells may be kept."""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

from greentrainer.cost import (
    added,
    form_of,
)
from greentrainer.engine.foretelling import Foretelling
from greentrainer.forward import (
    Signature,
    signature,
)
from greentrainer.types import Batch, CostGraph


class GraphCache(Foretelling):
    """The cost graph of any batch of a model, with all of `parameters` trainable.

    A batch is known again by the shapes of its tensors, and so is the call of the model that its
    loss makes, if it makes just one.  Where a model's work depends on its labels, or on data in a
    way that nobody can tell, the number of labelled positions counts as one more size: heads that
    leave out the others are common.  Where it depends on other values of the batch, what the model
    asks of them is asked of each batch, and the answers tell batches apart.

    head: of this model, if it works on labelled positions only.  As the head's cost is proportional
    to their number, it is told from two traces, and no shape is traced twice for it.
    split: of this model, if gradients may pass through the ends of rows only.  Such a batch is
        known by the sizes of its two parts.
    one_call: whether a batch is what `loss_fn` calls the model with, as keywords, and that once.
    on_real_pass: called with the graph where it took a real pass to learn a batch's cost.
    traces: where it is kept from run to run what was traced.

    `seconds` is the time that tracing took so far.
    """

    def of_batch(self, batch: Batch) -> CostGraph:
        """The graph of a batch of these shapes."""
        found = self._find(self._signature(batch), batch)
        graph = self._headed(found if found is not None else self._trace(batch), batch)
        return self._measured(graph, batch)

    def of_call(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> CostGraph:
        """The graph of the batch that calls the model with these arguments."""
        found = self._find(self._signature(kwargs, args), kwargs)
        if found is not None:
            return self._measured(self._headed(found, kwargs), kwargs)
        if not self.one_call or args:
            raise ValueError(
                "a batch of a new shape: compute its loss with engine.loss(batch), "
                "so that its cost can be traced"
            )
        return self._measured(self._headed(self._trace(kwargs), kwargs), kwargs)

    def _measured(self, graph: CostGraph, batch: Batch) -> CostGraph:
        """The graph of a split batch, held against plain full fine-tuning of the whole one."""
        if self.split is None or self.split.parts(batch) is batch:
            return graph
        with self.split.at(None):
            plain = self.of_batch(batch).full_flops
        return self._remembered(
            (id(graph), -1, plain), graph, lambda: replace(graph, plain_flops=plain)
        )

    def _trace(self, batch: Batch) -> CostGraph:
        found = self._learn(batch)
        if found is not None:
            return found
        calls: list[Signature] = []
        before_it = self.seconds
        with self._noting(calls), self.split.on(batch) if self.split else nullcontext():
            graph = self._walk(batch)
        self._say_failed(self.seconds - before_it)
        plain = len(signature(self.split.parts(batch) if self.split else batch))
        before = self._signature(batch)
        if graph.questions is not None and not self._by_labels:
            self._asking[before] = graph.questions
        own = self._signature(batch)
        keys = {own}
        if len(set(calls)) == 1 and (self.one_call or own == before):
            call, told = calls[-1], own[plain:]
            keys |= {(*call, *told)}
            if before in self._asking:
                self._asking[*call, *before[plain:]] = self._asking[before]
        self._known |= dict.fromkeys(keys, graph)
        return graph

    def _walk(self, batch: Batch) -> CostGraph:
        """The traced graph; one with the head on no position, if it works on labelled ones."""
        positions = self.head.positions(batch) if self.head else None
        if self.head is None or positions is None:
            return self._pass(batch)
        seen = self.split.last(batch) if self.split else batch
        with self.head.on(seen):
            graph = self._pass(batch)
        form = form_of(graph)
        share = self._learned.share_of(form)
        if share is None:
            with self.head.on(seen, more=1):
                share = added(self._pass(batch), graph, -1)
            self._learned.per_position.append((form, share))
        return added(graph, share, -positions)
