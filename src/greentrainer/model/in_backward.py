"""An optimizer's step taken tensor by tensor in the backward pass, each gradient freed at once.

So there is never a gradient of the whole model.  The idea is LOMO's (Lv et al., 2023), for any
optimizer that treats each tensor by itself: with those the update is the ordinary one to the bit.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from greentrainer.model.shell import shell

MEMORY = 0.9
"""Of the running mean of gradient norms: what an earlier step's counts in the next."""
RUNNING = "running_norm"
"""Where the mean is kept: with the settings of the first group, so that it is saved with them."""


class InBackward:
    """Steps `optimizer` as gradients arrive, within `on`.

    max_norm: gradients are scaled as if their norm were the running mean of earlier steps', where
        that is greater (in the first step by each tensor's own norm); None or 0 leaves them alone.

    The optimizer's own `step` finds no gradients then.  State and settings stay in it, so it is
    saved and loaded as ever.  Call `close` at the end.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, max_norm: float | None = None) -> None:
        self.optimizer, self.max_norm = optimizer, max_norm or None
        self._on = False
        self._squares: list[torch.Tensor] = []
        self._groups = {id(p): g for g in optimizer.param_groups for p in g["params"]}
        self._handles = [
            parameter.register_post_accumulate_grad_hook(self._arrived)
            for group in optimizer.param_groups
            for parameter in group["params"]
            if parameter.requires_grad
        ]

    def close(self) -> None:
        """Gradients are left alone from now on."""
        for handle in self._handles:
            handle.remove()

    def begin(self) -> None:
        """The next backward pass is a step's."""
        self._on = True

    def end(self) -> None:
        """It is over."""
        self._on = False
        self._remember()

    @contextmanager
    def on(self) -> Iterator[None]:
        """In here is the backward pass of one step."""
        self.begin()
        try:
            yield
        finally:
            self.end()

    def _arrived(self, parameter: nn.Parameter) -> None:
        if not self._on:
            return
        assert parameter.grad is not None
        if self.max_norm is not None:
            self._scale(parameter.grad, self.max_norm)
        alone = shell(self.optimizer, self._groups[id(parameter)], [parameter])
        type(self.optimizer).step(alone)
        parameter.grad = None

    def _scale(self, gradient: torch.Tensor, most: float) -> None:
        norm = torch.linalg.vector_norm(gradient.detach(), dtype=torch.float32)
        self._squares.append(norm * norm)
        known = self.optimizer.param_groups[0].get(RUNNING)
        mean = norm if known is None else norm.new_tensor(known)
        gradient.mul_((most / (mean + 1e-6)).clamp(max=1.0).to(gradient.dtype))

    def _remember(self) -> None:
        """The norm of the step that is over."""
        if not self._squares:
            return
        norm = float(torch.stack(self._squares).sum().sqrt())
        self._squares.clear()
        group = self.optimizer.param_groups[0]
        known = group.get(RUNNING, norm)
        group[RUNNING] = MEMORY * known + (1 - MEMORY) * norm
