"""LISA (Pan et al., NeurIPS 2024): the embeddings, the head, and two blocks drawn by lot.

Other blocks are drawn every few steps.  Everything outside the blocks is trained throughout.
"""

from random import Random

from torch import nn

from greentrainer.config import RunConfig
from greentrainer.engine import Selector
from greentrainer.methods.base import Method, blocks_of, names_of
from greentrainer.select import by_rule

BLOCKS = 2
"""Blocks trained at a time (gamma)."""
STEPS = 20
"""Steps between draws (K), fewer in a run so short that few draws would be made."""
DRAWS = 8


def _choose(model: nn.Module, config: RunConfig) -> Selector:
    found = blocks_of(model)
    inside = set(names_of(model, *found))
    always = [name for name, _ in model.named_parameters() if name not in inside]

    def names_at(turn: int) -> list[str]:
        chance = Random(1000 * config.seed + turn)
        drawn = chance.sample(found, min(BLOCKS, len(found)))
        return always + names_of(model, *drawn)

    return by_rule(names_at)


def _interval(steps: int) -> int:
    return max(1, min(STEPS, steps // DRAWS))


LISA = Method(
    "lisa", "embeddings, head, and two blocks by lot", selector=_choose, interval=_interval
)
