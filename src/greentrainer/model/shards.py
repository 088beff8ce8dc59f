"""Processes that train one model cut into shards by FSDP2, and what they send one another."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from greentrainer.model.processes import Together

Count = Callable[[int], None]


def _counting(gather: Count, give: Count) -> tuple[Any, Any]:
    """FSDP2's own ways of sending, which tell bytes of whole weights and of gradients given."""
    from torch.distributed.fsdp._fully_shard import _fsdp_collectives as own

    class Gathered(own.DefaultAllGather):
        def __call__(self, output_tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            gather(output_tensor.nbytes)
            return super().__call__(output_tensor, *args, **kwargs)

    class Scattered(own.DefaultReduceScatter):
        def __call__(
            self, output_tensor: torch.Tensor, input_tensor: torch.Tensor, *args: Any, **more: Any
        ) -> Any:
            give(input_tensor.nbytes)
            return super().__call__(output_tensor, input_tensor, *args, **more)

    return Gathered(), Scattered()


class Shards(Together):
    """Processes each of which holds a part of every tensor.

    model: after `fully_shard`.  Gradients are counted as they are given, filled up so that each
    process gets as much; those of frozen tensors are not given.
    """

    def __init__(self, model: nn.Module, device: torch.device | str = "cpu") -> None:
        from torch.distributed.fsdp import FSDPModule

        super().__init__(device)
        self._given = self._whole = 0
        gathers, scatters = _counting(self._gather, self._give)
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.set_custom_all_gather(gathers)
                module.set_custom_reduce_scatter(scatters)

    def exchanged(self) -> int:
        """Bytes of gradients that this process gave to be exchanged since it was last asked."""
        since, self._given = self._given, 0
        return since

    def gathered(self) -> int:
        """Bytes of weights made whole in this process since it was last asked."""
        since, self._whole = self._whole, 0
        return since

    def _give(self, count: int) -> None:
        self._given += count

    def _gather(self, count: int) -> None:
        self._whole += count
