"""Top-2 layers, as the paper uses it: the output head and the last block.

Where the head is tied to the input embedding, as in OPT, BLOOM and SmolLM2, training it takes the
gradient all the way down to the embedding; that is why the paper's figure for it is so high.
"""

from typing import Any

from torch import nn

from greentrainer.config import RunConfig
from greentrainer.engine import Selector
from greentrainer.methods.base import Method, blocks_of, names_of
from greentrainer.select import by_rule


def _choose(model: nn.Module, _config: RunConfig) -> Selector:
    network: Any = model
    names = names_of(model, network.get_output_embeddings(), blocks_of(model)[-1])
    return by_rule(lambda _turn: names)


TOP2 = Method("top2", "the head and the last block", selector=_choose)
