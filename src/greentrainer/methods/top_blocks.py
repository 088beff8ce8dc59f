"""The last few blocks and what lies between them and the head, without the head.

Unlike `top2` its gradient stops where the blocks end, tied head or not.
"""

from typing import Any

from torch import nn

from greentrainer.config import RunConfig
from greentrainer.engine import Selector
from greentrainer.hf.blocks import blocks
from greentrainer.methods.base import Method, names_of
from greentrainer.select import by_rule


def _choose(model: nn.Module, config: RunConfig) -> Selector:
    """Raises ValueError for a model without repeated blocks."""
    found = blocks(model)
    if not found:
        raise ValueError(f"{type(model).__name__} has no repeated blocks: take another method")
    names = names_of(model, *found[-config.top_blocks :], *_norms_after(model, found))
    return by_rule(lambda _turn: names)


def _norms_after(model: nn.Module, found: list[nn.Module]) -> list[nn.Module]:
    """What stands beside the last list of blocks and follows it: the final normalisation."""
    for module in model.modules():
        children = list(module.children())
        for place, child in enumerate(children):
            if isinstance(child, nn.ModuleList) and len(child) and child[-1] is found[-1]:
                return [after for after in children[place + 1 :] if not _embeds(model, after)]
    return []


def _embeds(model: Any, part: nn.Module) -> bool:
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    tied = {id(p) for end in ends if end is not None for p in end.parameters()}
    return any(id(p) in tied for p in part.parameters())


TOP_BLOCKS = Method("top_blocks", "the last blocks", selector=_choose)
