"""A cache with room behind the prefix's keys and values for those of the tail.

A cache that grows copies all of it for each layer to put the tail's behind.  Here the prefix's are
written once where they are to stay, and the tail's behind them; their gradient is a slice.
"""

from functools import partial
from typing import Any

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer


class _Put(torch.autograd.Function):
    """Keys or values of a tail written behind those of its prefix: all of them."""

    @staticmethod
    def forward(ctx: Any, new: torch.Tensor, room: torch.Tensor, start: int) -> torch.Tensor:
        ctx.start = start
        room[..., start:, :].copy_(new)
        return room.view_as(room)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        return gradient[..., ctx.start :, :], None, None


_put: Any = _Put.apply


class RoomyLayer(DynamicLayer):
    """Keys and values of one layer, (B, H, T, D), with room for so many positions more."""

    is_initialized: bool
    keys: Any
    values: Any

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room, self.length = room, 0

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """First the prefix's, then the tail's; any further ones as in a cache that grows."""
        start = self.length
        self.length += key_states.shape[-2]
        if not self.is_initialized:
            self.device, self.is_initialized = key_states.device, True
            self.keys, self.values = self._roomy(key_states), self._roomy(value_states)
            return key_states, value_states
        if self.length == self.keys.shape[-2]:
            self.keys = _put(key_states, self.keys, start)
            self.values = _put(value_states, self.values, start)
        else:
            self.keys = torch.cat([self.keys[..., :start, :], key_states], dim=-2)
            self.values = torch.cat([self.values[..., :start, :], value_states], dim=-2)
        return self.keys, self.values

    def _roomy(self, states: torch.Tensor) -> torch.Tensor:
        *outer, length, size = states.shape
        made = states.new_empty(*outer, length + self.room, size)
        made[..., :length, :].copy_(states)
        return made

    def get_seq_length(self) -> int:
        """Positions so far."""
        return self.length


def roomy_cache(config: Any, room: int) -> DynamicCache:
    """An empty cache for a model of this configuration, its growing layers with room for a tail.

    Layers of other kinds (sliding windows, recurrent states) are the model's own.
    """
    cache: Any = DynamicCache(config=config)
    if cache.layer_class_to_replicate is DynamicLayer:
        cache.layer_class_to_replicate = partial(RoomyLayer, room)
    cache.layers = [
        RoomyLayer(room) if type(layer) is DynamicLayer else layer for layer in cache.layers
    ]
    made: DynamicCache = cache
    return made
