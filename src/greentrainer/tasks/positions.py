"""How long a text a model can read at all: where its positions are looked up in a table."""

from typing import Any

from torch import nn

OFFSETS = (0, 2)
"""Rows of a table beyond the positions it serves; OPT and BART leave the first two unused."""


def limit(model: Any) -> int | None:
    """The number of positions, None where they are computed and go on for ever (rotary, ALiBi)."""
    count = getattr(model.config, "max_position_embeddings", None)
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    words = {id(p) for end in ends if end is not None for p in end.parameters()}
    tables = (
        module.num_embeddings
        for module in model.modules()
        if isinstance(module, nn.Embedding) and id(module.weight) not in words
    )
    return count if count and any(rows - count in OFFSETS for rows in tables) else None


def require_room(model: Any, max_length: int, virtual: int) -> None:
    """Raise ValueError if texts of `max_length`, behind `virtual` tokens, are beyond the limit."""
    most = limit(model)
    if most is None or max_length + virtual <= most:
        return
    behind = f" and {virtual} virtual tokens" if virtual else ""
    raise ValueError(
        f"max_length is {max_length}: with a text of that length{behind} the model's {most} "
        f"positions are too few, set max_length to {most - virtual} or less"
    )
