"""Updates of weights in half precision that are not lost: rounded up or down by chance.

A weight of 1 in bfloat16 has neighbours at a distance of 2**-7, and most updates are far smaller:
rounded to the nearest they vanish.  Rounded up with a probability that is the share of the way they
are right in the mean (stochastic rounding; Gupta et al., ICML 2015).  The optimizer works on a copy
in float32, one tensor at a time, and its state is in float32 too.
"""

from collections import defaultdict
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import nn

from greentrainer.model.shell import shell

BITS = 16
"""Of float32 that bfloat16 has not."""
COUNT = "roundings"
"""Where a tensor's updates are counted: with its state, so that a resumed run draws as this one."""
PRIME = 1_000_003


def stochastically_rounded(exact: torch.Tensor, seed: int) -> torch.Tensor:
    """A float32 tensor in bfloat16, the mean over all seeds being the tensor itself."""
    chance = torch.Generator(exact.device).manual_seed(seed)
    noise = torch.randint(
        1 << BITS, exact.shape, generator=chance, device=exact.device, dtype=torch.int32
    )
    cut = noise.add_(exact.contiguous().view(torch.int32)).bitwise_and_(-1 << BITS)
    return cut.view(torch.float32).to(torch.bfloat16)


def round_stochastically(optimizer: torch.optim.Optimizer) -> None:
    """From now on its updates of weights in bfloat16 are rounded by chance.

    To be called before a schedule of learning rates is made for it.
    """
    if not rounds_stochastically(optimizer):
        kind: Any = type(optimizer)
        optimizer.__class__ = _rounding(kind)


def rounds_stochastically(optimizer: Any) -> bool:
    """Whether it is one of those."""
    return getattr(type(optimizer), "rounds_stochastically", False)


def exact_copy(optimizer: torch.optim.Optimizer, tensor: torch.Tensor) -> torch.Tensor:
    """A copy of a weight or a gradient as the optimizer works on it."""
    half = rounds_stochastically(optimizer) and tensor.dtype == torch.bfloat16
    return tensor.detach().to(torch.float32 if half else tensor.dtype, copy=True)


@cache
def _rounding(kind: type[torch.optim.Optimizer]) -> type[torch.optim.Optimizer]:
    """The class, with updates rounded by chance."""

    def step(self: Any, closure: Callable[[], Any] | None = None) -> Any:
        loss = None if closure is None else closure()
        for group in self.param_groups:
            given = [p for p in group["params"] if p.grad is not None]
            half = [p for p in given if p.dtype == torch.bfloat16]
            for parameter in half:
                _updated(self, kind, group, parameter)
            kind.step(shell(self, group, [p for p in given if p.dtype != torch.bfloat16]))
        return loss

    def load_state_dict(self: Any, state_dict: dict[str, Any]) -> None:
        """As ever; state stays in the precision that it was saved in."""
        kind.load_state_dict(self, state_dict)
        own = [p for group in self.param_groups for p in group["params"]]
        numbers = [n for group in state_dict["param_groups"] for n in group["params"]]
        for number, parameter in zip(numbers, own, strict=True):
            for key, value in state_dict["state"].get(number, {}).items():
                if isinstance(value, torch.Tensor) and value.dim():
                    self.state[parameter][key] = value.to(parameter.device, copy=True)

    own = {"step": step, "load_state_dict": load_state_dict, "rounds_stochastically": True}
    return type(f"Rounding{kind.__name__}", (kind,), own)


@torch.no_grad()
def _updated(
    optimizer: Any, kind: type[torch.optim.Optimizer], group: Any, parameter: nn.Parameter
) -> None:
    exact = nn.Parameter(parameter.detach().float())
    assert parameter.grad is not None
    exact.grad = parameter.grad.float()
    alone = shell(optimizer, group, [exact])
    alone.state = defaultdict(dict)
    state = optimizer.state[parameter]
    count = state.pop(COUNT, 0)
    if state:
        alone.state[exact] = state
    kind.step(alone)
    optimizer.state[parameter] = {**alone.state[exact], COUNT: count + 1}
    parameter.copy_(stochastically_rounded(exact.detach(), PRIME * count + parameter.numel()))
