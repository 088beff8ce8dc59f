"""A prefix's keys and values as plain arguments, for blocks that are compiled.

A graph is guarded on every attribute of a cache that it meets, and each block has a layer of its
own: so each would get graphs of its own, more than torch makes before it gives up.  Therefore the
cache is taken out of a block's arguments.  In the prefix's pass its attention puts keys and values
into a list, in the tail's pass it is given those of the prefix to put before its own; blocks alike
share one graph for each.  Masks and positions stay the model's own, which asks the cache for its
length alone.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from greentrainer.forward.lower_right import attend, seen, suits

T = TypeVar("T")

OUT, BEFORE = "keys_handed_out", "keys_handed_before"
"""Arguments that pass through a block to its attention function."""


class _Layer(DynamicLayer):
    """Of one block.  length: positions, also when keys and values were taken."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys, self.values, self.length = keys, values, keys.shape[-2]

    def get_seq_length(self) -> int:
        return int(self.length)


class HandedCache(DynamicCache):
    """The prefix's keys and values.  filled: whether its pass is over."""

    def __init__(self) -> None:
        super().__init__()
        self.filled = False

    def put(self, *states: torch.Tensor) -> None:
        """Those of the next block.  Raises ValueError where its attention gave none."""
        if len(states) != 2:
            raise ValueError("the attention of compiled blocks takes no plain keys")
        self.layers.append(_Layer(*states))

    def take(self, number: int) -> tuple[Any, Any]:
        """Those of a block; they are held no longer."""
        layer: Any = self.layers[number]
        found = layer.keys, layer.values
        layer.keys = layer.values = None
        return found


def handing(run: Callable[[dict[str, Any]], T], number: int, kwargs: dict[str, Any]) -> T:
    """What `run` makes of a block's keywords, without the cache among them.

    number: of the block.
    """
    name = next((n for n, value in kwargs.items() if isinstance(value, HandedCache)), None)
    if name is None:
        return run(kwargs)
    cache: HandedCache = kwargs[name]
    plain = {**kwargs, name: None}
    if cache.filled:
        return run({**plain, BEFORE: cache.take(number)})
    out: list[torch.Tensor] = []
    found = run({**plain, OUT: out})
    cache.put(*out)
    return found


def take_plain_keys(model: Any) -> None:
    """Have the attention function that a model uses, if transformers knows it, take plain keys.

    And do without a mask where `lower_right` says that it may.  For all others it is as it was.
    """
    name = getattr(getattr(model, "config", None), "_attn_implementation", None)
    known: Any = ALL_ATTENTION_FUNCTIONS
    if name in known and not hasattr(known[name], OUT):
        known[name] = _taking(known[name])


def _taking(attention: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(attention)
    def taking(
        module: Any, query: Any, key: Any, value: Any, attention_mask: Any = None, **kwargs: Any
    ) -> Any:
        out, before = kwargs.pop(OUT, None), kwargs.pop(BEFORE, None)
        if out is not None:
            out.append(key)
            out.append(value)
        if before is not None:
            key = torch.cat([before[0], key], dim=-2)
            value = torch.cat([before[1], value], dim=-2)
        if seen.whole and suits(query, attention_mask, kwargs):
            dropout, scale = kwargs.get("dropout", 0.0), kwargs.get("scaling")
            return attend(query, key, value, dropout, scale), None
        return attention(module, query, key, value, attention_mask, **kwargs)

    setattr(taking, OUT, True)
    return taking


def is_compiled(model: Any) -> bool:
    """Whether any of its modules is."""
    return any(getattr(m, "_compiled_call_impl", None) is not None for m in model.modules())
