"""The last few blocks and what lies between them and the head, without the head.

Unlike `top2` its gradient stops where the blocks end, tied head or not.
"""

from itertools import takewhile
from typing import Any

from torch import nn

from greentrainer.config import RunConfig
from greentrainer.engine import Selector
from greentrainer.methods.base import Method, blocks_of, names_of
from greentrainer.select import Blind, fixed
from greentrainer.types import CostGraph, Selection


def _choose(model: nn.Module, config: RunConfig) -> Selector:
    """Raises ValueError for a model without repeated blocks."""
    network: Any = model
    found = blocks_of(model)
    trained = set(names_of(model, *found[-config.top_blocks :]))
    ends = set(names_of(model, network.get_input_embeddings(), network.get_output_embeddings()))

    def choose(graph: CostGraph, _budget: float, _turn: int) -> Selection:
        above = takewhile(lambda name: name not in trained, graph.tensors)  # from the loss down
        return fixed(graph, trained | (set(above) - ends))

    return Blind(choose, budgeted=False)


TOP_BLOCKS = Method("top_blocks", "the last blocks", selector=_choose)
