"""Apply a selection to a model and its optimizer, and take it back.

A frozen tensor stays in the optimizer's param groups; it is skipped because it has no gradient.
Three things would let it move or cost all the same, and are seen to here: a gradient left over from
before (set to None), optimizer state that takes memory (`OptimizerState` says what becomes of it),
and dropout in modules that no gradient passes through (switched to evaluation).
"""

from collections.abc import Collection, Iterable
from typing import Literal, get_args

import torch
from torch import nn

OptimizerState = Literal["keep", "drop", "offload"]
"""What becomes of a frozen tensor's optimizer state: stays, is deleted, or moves to host memory."""


class Freezer:
    """Freezes all `candidates` of a model but the chosen ones; reversible.

    Other parameters (a frozen base under adapters) are never touched.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        candidates: Iterable[str],
        optimizer_state: OptimizerState = "keep",
    ) -> None:
        if optimizer_state not in get_args(OptimizerState):
            raise ValueError(
                f"optimizer_state is {optimizer_state!r}: choose keep, drop or offload"
            )
        wanted = set(candidates)
        self.parameters = {n: p for n, p in model.named_parameters() if n in wanted}
        self.modules = dict(model.named_modules())
        self.optimizer = optimizer
        self.optimizer_state = optimizer_state
        self.idle: tuple[str, ...] = ()
        self._chosen: set[str] | None = None
        self._silenced: dict[nn.Module, None] = {}
        self._offloaded: dict[str, dict[str, torch.device]] = {}

    def apply(self, names: Collection[str], idle_modules: Iterable[str] = ()) -> None:
        """Train exactly `names` from now on; `idle_modules` are those no gradient passes."""
        self.wake()
        self._chosen = chosen = set(names)
        for name, parameter in self.parameters.items():
            parameter.requires_grad_(name in chosen)
            if name in chosen:
                self._bring_back(name, parameter)
            else:
                parameter.grad = None
                self._put_away(name, parameter)
        self.idle = tuple(idle_modules)

    def hold(self) -> None:
        """Freeze again what others made trainable, as adapters do that are switched off and on."""
        if self._chosen is None:
            return
        for name, parameter in self.parameters.items():
            if parameter.requires_grad != (name in self._chosen):
                parameter.requires_grad_(name in self._chosen)

    def silence(self) -> None:
        """Switch idle modules to evaluation: again before each forward, for `train()` undoes it."""
        for name in self.idle:
            module = self.modules[name]
            if module.training:
                module.training = False
                self._silenced[module] = None

    def wake(self) -> None:
        """Give silenced modules the mode of the whole model."""
        mode = self.modules[""].training
        for module in self._silenced:
            module.training = mode
        self._silenced.clear()

    def release(self) -> None:
        """Make every candidate trainable again and give the modules their mode back."""
        self.apply(self.parameters)
        self._chosen = None

    def _put_away(self, name: str, parameter: nn.Parameter) -> None:
        if self.optimizer_state == "drop":
            self.optimizer.state.pop(parameter, None)
        elif self.optimizer_state == "offload" and parameter in self.optimizer.state:
            state = self.optimizer.state[parameter]
            devices = self._offloaded.setdefault(name, {})
            for key, value in state.items():
                if isinstance(value, torch.Tensor) and value.device.type != "cpu":
                    devices[key] = value.device
                    state[key] = value.cpu()

    def _bring_back(self, name: str, parameter: nn.Parameter) -> None:
        for key, device in self._offloaded.pop(name, {}).items():
            state = self.optimizer.state[parameter]
            state[key] = state[key].to(device)
