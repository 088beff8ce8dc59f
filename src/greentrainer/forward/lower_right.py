"""The attention of a tail whose prefix has no padding: causal from the lower right, without a mask.

A model makes a mask for a tail, since it has fewer positions than keys, and with a mask a GPU has
only slow kernels (docs/log.md).  Flash attention needs none, for its causal pattern is aligned so
that the last position sees the last key.  It is used where it is known that the mask says just
that.
"""

from dataclasses import dataclass
from typing import Any

import torch

HALF = (torch.float16, torch.bfloat16)
CAPABILITY = (8, 0)
"""Least of a GPU that flash attention runs on."""
WINDOWS = ("sliding_window", "attention_chunk_size", "attention_window_size", "window_size")
"""What a configuration calls a limit of how far back a position sees."""


@dataclass
class Seen:
    """whole: in the pass that runs now each position sees all keys up to its own.

    anywhere: use it on any device and in any precision, as for a test.
    """

    whole: bool = False
    anywhere: bool = False


seen = Seen()


def usable(model: Any) -> bool:
    """Whether a model's attention is plain, by its configuration, and its device has the kernel."""
    config: Any = getattr(model, "config", None)
    if getattr(config, "_attn_implementation", None) != "sdpa":
        return False
    text = config.get_text_config()
    kinds = set(getattr(text, "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"} or any(getattr(text, name, None) for name in WINDOWS):
        return False
    device = next(model.parameters()).device
    able = device.type == "cuda" and torch.cuda.get_device_capability(device) >= CAPABILITY
    return able or seen.anywhere


def suits(query: torch.Tensor, mask: Any, others: dict[str, Any]) -> bool:
    """Whether a call of an attention function is one that flash attention can be put in place of.

    others: further arguments of the call.
    """
    if not isinstance(mask, torch.Tensor) or mask.dtype != torch.bool:
        return False
    if any(others.get(name) is not None for name in ("sliding_window", "position_bias")):
        return False
    fits = _kind(query) in HALF and query.shape[-1] % 8 == 0 and query.shape[-1] <= 256
    return fits or seen.anywhere


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    dropout: float = 0.0,
    scale: float | None = None,
) -> torch.Tensor:
    """(B, Q, H, D): the last position of a query, (B, H, Q, D), sees all keys, (B, h, K, D)."""
    if query.device.type == "cuda":
        kind = _kind(query)
        out = torch.ops.aten._scaled_dot_product_flash_attention(
            query.to(kind), key.to(kind), value.to(kind), dropout, True, scale=scale
        )[0]
    else:
        rows, columns = query.shape[-2], key.shape[-2]
        mask = torch.ones(rows, columns, dtype=torch.bool, device=query.device)
        out = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, mask.tril(columns - rows), dropout, scale=scale,
            enable_gqa=key.shape[1] != query.shape[1],
        )  # fmt: skip
    found: torch.Tensor = out.transpose(1, 2).contiguous()
    return found


def _kind(query: torch.Tensor) -> torch.dtype:
    """What attention computes in."""
    device = query.device.type
    on = torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if on else query.dtype
