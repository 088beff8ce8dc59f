"""Cost graphs by shape: each shape of batch is traced once."""

import copy
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import accumulate
from typing import Any

import torch
from torch import nn

from greentrainer.cost import trace
from greentrainer.cost.interpolate import interpolated
from greentrainer.types import Batch, CostGraph, LossFn

Signature = tuple[tuple[str, tuple[int, ...]], ...]
"""The path to each tensor, and its shape."""


class GraphCache:
    """The cost graph of any batch of a model, with all of `parameters` trainable.

    A batch is known again by the shapes of its tensors, and so is the call of the model that its
    loss makes, if it makes just one.

    one_call: whether a batch is what `loss_fn` calls the model with, as keywords, and that once.
    """

    def __init__(
        self,
        model: nn.Module,
        parameters: Iterable[nn.Parameter],
        loss_fn: LossFn | None,
        one_call: bool = False,
    ) -> None:
        self.model, self.loss_fn = model, loss_fn
        self.one_call = one_call or loss_fn is None
        self.parameters = list(parameters)
        self._by_batch: dict[Signature, CostGraph] = {}
        self._by_call: dict[Signature, CostGraph] = {}
        self._traced: set[Signature] = set()
        self.tracing = False

    def of_batch(self, batch: Batch) -> CostGraph:
        """The graph of a batch of these shapes."""
        known = self._by_batch.get(signature(batch)) or self._foretold(signature(batch))
        return known if known is not None else self._trace(batch)

    def of_call(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> CostGraph:
        """The graph of the batch that calls the model with these arguments."""
        call = signature((args, kwargs))
        known = self._by_call.get(call) or self._foretold(call, of_call=True)
        if known is not None:
            return known
        if not self.one_call or args:
            raise ValueError(
                "a batch of a new shape: compute its loss with engine.loss(batch), "
                "so that its cost can be traced"
            )
        return self._trace(kwargs)

    def _foretold(self, wanted: Signature, of_call: bool = False) -> CostGraph | None:
        """The graph of a shape between shapes that were traced, if these tell it."""
        traced = self._by_call if of_call else self._by_batch
        paths = [path for path, _ in wanted]
        known = {
            _sizes(shapes): traced[shapes]
            for shapes in self._traced
            if shapes in traced
            and [(path, len(shape)) for path, shape in shapes]
            == [(path, len(shape)) for path, shape in wanted]
        }
        starts = accumulate((len(shape) for _, shape in wanted), initial=0)
        rows = frozenset(at for at, (_, shape) in zip(starts, wanted, strict=False) if shape)
        graph = interpolated(known, _sizes(wanted), rows) if known and paths else None
        if graph is not None:
            traced[wanted] = graph
        return graph

    def _trace(self, batch: Batch) -> CostGraph:
        calls: set[Signature] = set()

        def note(_model: Any, args: Any, kwargs: Any) -> None:
            calls.add(signature((args, kwargs)))

        handle = self.model.register_forward_pre_hook(note, with_kwargs=True)
        self.tracing = True
        try:
            with _trainable(self.parameters):
                graph = trace(self.model, batch, self.loss_fn)
        finally:
            handle.remove()
            self.tracing = False
        self._by_batch[signature(batch)] = graph
        self._traced.add(signature(batch))
        if len(calls) == 1:
            self._traced |= calls
            self._by_call[calls.pop()] = graph
        return graph


def hollow(model: nn.Module) -> nn.Module:
    """A copy of a model without values: every parameter and buffer on the meta device.

    What is cut into shards later can no longer be traced; its hollow copy can.
    """
    tensors = [*model.named_parameters(), *model.named_buffers()]
    memo: dict[int, Any] = {}
    for _, tensor in tensors:
        blank = torch.empty_like(tensor, device="meta")
        kept = (
            nn.Parameter(blank, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else blank
        )
        memo[id(tensor)] = kept
    return copy.deepcopy(model, memo)


@contextmanager
def _trainable(parameters: list[nn.Parameter]) -> Iterator[None]:
    """Everything that may be trained requires a gradient in here, whatever is frozen now."""
    before = [parameter.requires_grad for parameter in parameters]
    try:
        for parameter in parameters:
            parameter.requires_grad_()
        yield
    finally:
        for parameter, flag in zip(parameters, before, strict=True):
            parameter.requires_grad_(flag)


def signature(value: Any) -> Signature:
    """The shapes of all tensors in nested mappings and sequences."""
    return tuple(sorted((path, tuple(tensor.shape)) for path, tensor in tensors(value)))


def _sizes(shapes: Signature) -> tuple[int, ...]:
    return tuple(size for _, shape in shapes for size in shape)


def tensors(value: Any, path: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """All tensors in nested mappings and sequences, each with the path to it."""
    if isinstance(value, torch.Tensor):
        yield path, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from tensors(item, f"{path}.{key}")
    elif isinstance(value, (list, tuple)):
        for position, item in enumerate(value):
            yield from tensors(item, f"{path}.{position}")
