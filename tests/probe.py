"""A small model with everything that a probe could disturb, and a picture of all of it."""

import random
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim import SGD, Adafactor, AdamW, Optimizer

from greentrainer.types import Batch

METRICS = ["first_order", "two_pass"]
OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "momentum": partial(SGD, lr=0.1, momentum=0.9),
    "adamw": partial(AdamW, lr=1e-2),
    "adamw-fused": partial(AdamW, lr=1e-2, fused=True),
    "adafactor": partial(Adafactor, lr=1e-2),
}


class Restless(nn.Module):
    """Dropout, running statistics, buffers that a forward pass replaces, fills and adds, and a
    tensor that the loss does not touch."""

    passes: torch.Tensor
    late: torch.Tensor | None

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.norm = nn.BatchNorm1d(8)
        self.drop = nn.Dropout(0.5)
        self.last = nn.Linear(8, 3)
        self.unused = nn.Parameter(torch.ones(3))
        self.register_buffer("passes", torch.zeros(()))
        self.register_buffer("late", None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.passes = self.passes + 1
        self.late = x.mean()
        self.drop.register_buffer("added", x.mean())
        return self.last(self.drop(torch.tanh(self.norm(self.first(x)))))  # type: ignore[no-any-return]


def noisy(model: Any, batch: Batch) -> torch.Tensor:
    """Draws from the random streams of Python, numpy and torch."""
    inputs, wanted = batch
    noise = random.random() + np.random.rand()  # noqa: NPY002
    return (model(inputs) - wanted - noise).square().mean()  # type: ignore[no-any-return]


def batches(count: int, seed: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    draw = partial(torch.randn, generator=generator)
    return [(draw(4, 6), draw(4, 3)) for _ in range(count)]


def train_step(model: nn.Module, optimizer: Optimizer, batch: Batch) -> None:
    noisy(model, batch).backward()
    optimizer.step()
    optimizer.zero_grad()


def in_training(kind: str = "adamw", steps: int = 2) -> tuple[Restless, Optimizer]:
    """Mixed modes and flags; some tensors with a gradient, a frozen one too, some without."""
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    model = Restless()
    optimizer = OPTIMIZERS[kind](model.parameters())
    for batch in batches(steps, seed=9):
        train_step(model, optimizer, batch)
    model.training = model.last.training = False
    model.last.bias.requires_grad_(False)
    model.last.bias.grad = torch.randn(3)
    model.first.weight.grad = torch.randn(8, 6)
    return model, optimizer


def plain(value: Any) -> Any:
    """Tensors and arrays become their type, shape and bytes: `==` then compares every bit."""
    if isinstance(value, torch.Tensor):
        return plain(value.detach().numpy())
    if isinstance(value, np.ndarray):
        return str(value.dtype), value.shape, value.tobytes()
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    return [plain(each) for each in value] if isinstance(value, list | tuple) else value


def with_id(tensor: torch.Tensor | None) -> Any:
    return None if tensor is None else (id(tensor), tensor.data_ptr(), plain(tensor))


def picture(model: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    """Everything that a probe may not change."""
    named = dict(model.named_parameters())
    streams = (torch.get_rng_state(), random.getstate(), np.random.get_state())  # noqa: NPY002
    return {
        "weights": {name: with_id(p) for name, p in named.items()},
        "gradients": {name: with_id(p.grad) for name, p in named.items()},
        "flags": {name: p.requires_grad for name, p in named.items()},
        "hooks": [name for name, p in named.items() if p._post_accumulate_grad_hooks],
        "buffers": [{n: with_id(b) for n, b in m._buffers.items()} for m in model.modules()],
        "modes": [module.training for module in model.modules()],
        "streams": plain(streams),
        "optimizer": plain(optimizer.state_dict()),
        "states": [(id(p), id(state)) for p, state in optimizer.state.items()],
        "groups": [{key: id(option) for key, option in g.items()} for g in optimizer.param_groups],
        "attributes": {key: id(value) for key, value in vars(optimizer).items()},
    }
