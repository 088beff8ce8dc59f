"""What a fine-tuning method is: which model is trained, and which tensors at each moment.

All methods train through one engine, which counts for all of them alike what they execute.  They
differ in four things only: an adapter put into the model, the rule that chooses tensors, whether
the rule keeps within `rho`, and whether the run is cut short.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from greentrainer.config import RunConfig
from greentrainer.engine import Selector
from greentrainer.model import blocks
from greentrainer.select import select

Adapt = Callable[[Any, RunConfig], Any]
"""From the model as loaded to the one to train."""
Choose = Callable[[nn.Module, RunConfig], Selector]
"""From the model to train to what chooses its tensors."""
Finish = Callable[[Any], Any]
"""From the trained model to the one to evaluate and save."""


def unchanged(model: Any, _config: RunConfig | None = None) -> Any:
    """The model itself."""
    return model


def exact(_model: nn.Module, _config: RunConfig) -> Selector:
    """The exact selector; at rho 1 it chooses everything."""
    return select


@dataclass(frozen=True)
class Method:
    """One way to fine-tune.

    name: in configurations and tables.
    says: what it trains, in a few words.
    budgeted: spends `rho` of full fine-tuning; all others are given a rho of 1.
    shortened: makes only the steps that `rho` pays for, their learning rate schedule compressed;
        others do where `stop_early` says so.
    trains: zero-shot does not.
    optional: its adapter is put in only where `lora_rank` is given.
    virtual: puts the run's `virtual_tokens` before each text.
    interval: optimizer steps between two choices, from those of the whole run; by default choices
        are made as often as the configuration says.
    """

    name: str
    says: str
    adapt: Adapt = unchanged
    selector: Choose = exact
    finish: Finish = unchanged
    budgeted: bool = False
    shortened: bool = False
    trains: bool = True
    virtual: bool = False
    optional: bool = False
    interval: Callable[[int], int] | None = None

    def stops_early(self, config: RunConfig) -> bool:
        """Whether it makes only the steps that the budget pays for.

        Raises ValueError for one that chooses what it spends by its budget anyhow.
        """
        if config.stop_early and self.budgeted:
            raise ValueError(f"{self.name} keeps to its budget by choosing: leave stop_early out")
        return self.shortened or config.stop_early

    def adapts(self, config: RunConfig) -> bool:
        """Whether it trains another model than the one loaded."""
        asked = not self.optional or config.lora_rank is not None
        return self.adapt is not unchanged and asked


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The repeated blocks.  Raises ValueError for a model without."""
    found = blocks(model)
    if not found:
        raise ValueError(f"{type(model).__name__} has no repeated blocks: take another method")
    return found


def names_of(model: nn.Module, *parts: nn.Module | None) -> list[str]:
    """Names of the parameters in these parts of a model; a tied one has the name it has above."""
    inside = {id(p) for part in parts if part is not None for p in part.parameters()}
    return [name for name, parameter in model.named_parameters() if id(parameter) in inside]
