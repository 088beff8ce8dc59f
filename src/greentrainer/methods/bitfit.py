"""BitFit (Ben Zaken, Goldberg and Ravfogel, ACL 2022): biases alone.

A model without biases (Llama and its kin) has none to train; there the gains of its normalisations
take their place, the only other vectors.
"""

from torch import nn

from greentrainer.config import RunConfig
from greentrainer.engine import Selector
from greentrainer.methods.base import Method
from greentrainer.select import by_rule


def _choose(model: nn.Module, _config: RunConfig) -> Selector:
    biases = {
        id(module.bias)
        for module in model.modules()
        if isinstance(getattr(module, "bias", None), nn.Parameter)
    }
    named = list(model.named_parameters())
    names = [name for name, p in named if id(p) in biases]
    names = names or [name for name, p in named if p.ndim == 1]
    return by_rule(lambda _turn: names)


BITFIT = Method("bitfit", "biases, or gains where there are none", selector=_choose)
