"""Sees training batches go by and enters them in the ledger.

A hook on the model's forward pass notes the batch and its forward cost, a hook on its outputs notes
that the backward pass has begun, and one on the optimizer that the step is done.  Forward passes in
evaluation mode or without gradients are no training.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import register_multi_grad_hook

from greentrainer.engine.graph_cache import GraphCache
from greentrainer.engine.verifier import Verifier
from greentrainer.forward import tensors, tokens_of
from greentrainer.model import Alone, now
from greentrainer.records import Entry, Ledger
from greentrainer.types import Batch, CostGraph


@dataclass(frozen=True)
class Price:
    """What a training batch costs.

    skipped_flops: of the forward pass, left out.
    tail_tokens: positions that gradient may pass; all when None.
    unread_tokens: positions that are not read.
    """

    forward_flops: int
    backward_flops: int
    skipped_flops: int = 0
    tail_tokens: int | None = None
    unread_tokens: int = 0


class Bookkeeper:
    """Enters each training batch in `ledger`.

    before_batch: called with the batch's graph before its forward pass, the place to change what is
        trained.
    price: called then with the graph and the model's arguments; what the batch costs.
    after_forward: called when the forward pass is over, however it ends, and before the next.
    processes: tell what was exchanged with others.

    `verifier` holds what is entered against what is executed.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        graphs: GraphCache,
        before_batch: Callable[[CostGraph], None],
        price: Callable[[CostGraph, Mapping[str, Any]], Price],
        after_forward: Callable[[], None] = lambda: None,
        processes: Alone | None = None,
    ) -> None:
        self.model, self.graphs, self.processes = model, graphs, processes or Alone()
        self.before_batch, self.price, self.after_forward = before_batch, price, after_forward
        self.ledger = Ledger()
        self.verifier = Verifier(lambda: self.ledger)
        self.between_steps = True
        self._quiet = False
        self._batch: Batch = None
        self._pending: int | None = None
        self._clock: float | None = None
        self._handles: list[Any] = [
            model.register_forward_pre_hook(self._before_forward, with_kwargs=True, prepend=True),
            model.register_forward_hook(self._after_forward, always_call=True),
            optimizer.register_step_pre_hook(lambda *_: self.verifier.settle()),
            optimizer.register_step_post_hook(self._after_step),
        ]

    def close(self) -> None:
        """Stop observing."""
        self.verifier.close()
        for handle in self._handles:
            handle.remove()

    @contextmanager
    def unobserved(self) -> Iterator[None]:
        """Forward passes in here are no training batches."""
        before, self._quiet = self._quiet, True
        try:
            yield
        finally:
            self._quiet = before

    @contextmanager
    def one_batch(self, batch: Batch, after: Callable[[], None] = lambda: None) -> Iterator[None]:
        """All forward passes in here belong to the loss of this one batch.

        after: called when the loss is there, before a backward pass.
        """
        self._batch = batch
        try:
            with nullcontext() if self._quiet else self.verifier.loss():
                yield
            after()
        finally:
            self._batch, self._quiet = None, False

    def _before_forward(self, _model: Any, args: Any, kwargs: Any) -> None:
        if not (self._quiet or self.graphs.tracing):
            self._pending = None
            self.after_forward()  # Ctrl-C may have broken off the pass before
        if not self._is_training():
            return
        self._tick()
        known = self._batch is not None
        if not known:
            self.verifier.settle()
        with self.unobserved():
            with self.verifier.aside():
                self.before_batch(self._graph(args, kwargs))
                self._clock = now(self._device)
                graph = self._graph(args, kwargs)  # gradient may pass through other positions now
            self.verifier.forward_begins()
            price = self.price(graph, kwargs)
        self._enter(graph, price, self._batch if known else kwargs)
        self.verifier.told(price.forward_flops, price.backward_flops)
        self._quiet = known

    def _graph(self, args: Any, kwargs: Any) -> CostGraph:
        if self._batch is not None:
            return self.graphs.of_batch(self._batch)
        return self.graphs.of_call(args, kwargs)

    def _is_training(self) -> bool:
        watching = not (self._quiet or self.graphs.tracing)
        return watching and self.model.training and torch.is_grad_enabled()

    def _enter(self, graph: CostGraph, price: Price, batch: Batch) -> None:
        tokens, padded = tokens_of(batch)
        forward, backward = self.verifier.scales
        self._pending = round(backward * price.backward_flops)
        self.ledger.add(
            Entry(
                "train",
                forward_flops=round(forward * price.forward_flops),
                full_flops=graph.full_flops,
                skipped_flops=price.skipped_flops,
                tokens=tokens,
                padded_tokens=padded,
                tail_tokens=tokens if price.tail_tokens is None else price.tail_tokens,
                unread_tokens=price.unread_tokens,
            )
        )

    def _after_forward(self, _model: Any, _args: Any, output: Any) -> None:
        flops, self._pending = self._pending, None
        if flops is None:
            return
        self.verifier.forward_ends()
        self.after_forward()
        outputs = graded(output)
        if outputs:
            register_multi_grad_hook(outputs, lambda _: self._enter_backward(flops), mode="any")

    def _enter_backward(self, flops: int) -> None:
        self.between_steps = False
        self.ledger.amend(backward_flops=flops)
        self.verifier.gradient_came()

    def _after_step(self, *_: Any) -> None:
        self.between_steps = True
        self._tick()
        given, whole = self.processes.exchanged(), self.processes.gathered()
        if given or whole:
            self.ledger.amend(exchanged_bytes=given, gathered_bytes=whole)

    @property
    def _device(self) -> torch.device:
        return next(self.model.parameters()).device

    def _tick(self) -> None:
        if self._clock is not None:
            self.ledger.amend(seconds=now(self._device) - self._clock)
            self._clock = None


def graded(output: Any) -> list[torch.Tensor]:
    """The tensors in a model's output, whatever it is, that a gradient can come to."""
    found = [tensor for _, tensor in tensors(output) if tensor.requires_grad]
    if found or not hasattr(output, "__dict__"):
        return found
    return [tensor for _, tensor in tensors(vars(output)) if tensor.requires_grad]
