"""What a training batch costs, as it is about to be run."""

from collections.abc import Mapping, Sequence
from typing import Any

from greentrainer.engine.bookkeeper import Price
from greentrainer.engine.foretelling import LATEST
from greentrainer.forward import ForwardSavings
from greentrainer.types import CostGraph


class Prices:
    """Costs of batches under the selection in force; everything is trained before the first."""

    def __init__(self, savings: ForwardSavings) -> None:
        self.savings = savings
        self._names: Sequence[str] | None = None
        self._backward: dict[int, tuple[CostGraph, int]] = {}

    def select(self, names: Sequence[str]) -> None:
        """From now on these tensors are trained."""
        self._names = names
        self._backward.clear()

    def of(self, graph: CostGraph, kwargs: Mapping[str, Any]) -> Price:
        """Of a batch of this graph, whose forward pass is next.

        The graphs are kept beside their costs: another one in its place would have its number.
        """
        if id(graph) not in self._backward:
            if len(self._backward) > LATEST:
                self._backward.clear()
            self._backward[id(graph)] = graph, graph.backward_flops(self._names)
        forward, skipped = self.savings.enter(graph, kwargs)
        backward = self._backward[id(graph)][1]
        return Price(forward, backward, skipped, self.savings.tail_tokens(kwargs),
                     self.savings.unread_tokens(kwargs))  # fmt: skip
