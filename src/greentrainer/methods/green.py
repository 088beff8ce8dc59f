"""GreenTrainer: the tensors worth most within `rho`, chosen again and again.

`metric` says what they are chosen by: importance, or one of the controls at the same cost.
"""

from functools import partial

from torch import nn

from greentrainer.config import RunConfig
from greentrainer.engine import Selector
from greentrainer.methods.base import Method
from greentrainer.methods.lora import if_asked, merged
from greentrainer.select import Blind, random_selection, select, top_layers
from greentrainer.types import CostGraph, Selection


def _choose(_model: nn.Module, config: RunConfig) -> Selector:
    if config.metric == "random":
        return Blind(partial(_random, config.seed))
    if config.metric == "top_layers":
        return Blind(lambda graph, budget, _turn: top_layers(graph, budget))
    return select


def _random(seed: int, graph: CostGraph, budget: float, turn: int) -> Selection:
    """Other tensors at each turn, the same ones within it however often it is chosen."""
    return random_selection(graph, budget, 1000 * seed + turn)


GREEN = Method(
    "green",
    "the tensors worth most within rho",
    adapt=if_asked,
    finish=merged,
    optional=True,
    selector=_choose,
    budgeted=True,
)
