"""Updates of weights in bfloat16, rounded by chance."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

from greentrainer.importance.update import updated_weights
from greentrainer.model import InBackward, round_stochastically
from greentrainer.model.rounding import stochastically_rounded

OPTIMIZERS: list[Callable[..., torch.optim.Optimizer]] = [
    lambda given: torch.optim.SGD(given, lr=1e-3),
    lambda given: torch.optim.SGD(given, lr=1e-3, momentum=0.9),
    lambda given: torch.optim.AdamW(given, lr=1e-4),
    lambda given: torch.optim.AdamW(given, lr=1e-4, fused=True),
    lambda given: torch.optim.Adafactor(given, lr=1e-4),
]


def test_it_is_right_in_the_mean() -> None:
    exact = torch.tensor([1.0, 1.001, -1.003, 0.02001, 3e-5, 0.0, -7.77])
    drawn = torch.stack([stochastically_rounded(exact, seed).float() for seed in range(4000)])
    spacing = 2.0**-7 * exact.abs()
    assert ((drawn - exact).abs() <= spacing).all()
    assert ((drawn.mean(0) - exact).abs() <= spacing / 20).all()
    assert (drawn[:, 0] == 1).all()  # what bfloat16 has stays
    assert drawn.dtype == torch.float32
    assert stochastically_rounded(exact, 3).dtype == torch.bfloat16


def layers(dtype: torch.dtype) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 4)).to(dtype)


def same(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def stepped(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, first: int = 0) -> None:
    for number in range(first, first + steps):
        chance = torch.Generator().manual_seed(number)
        rows = torch.randn(8, 16, generator=chance).to(next(model.parameters()).dtype)
        model(rows).float().square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("make", OPTIMIZERS)
def test_small_updates_are_not_lost(make: Callable[..., torch.optim.Optimizer]) -> None:
    """Half precision follows float32; rounded to the nearest it stays behind."""
    moved = {}
    for name in ("exact", "chance", "nearest"):
        model = layers(torch.float32 if name == "exact" else torch.bfloat16)
        optimizer = make(model.parameters())
        if name == "chance":
            round_stochastically(optimizer)
        before = torch.cat([p.detach().float().flatten() for p in model.parameters()])
        stepped(model, optimizer, 60)
        after = torch.cat([p.detach().float().flatten() for p in model.parameters()])
        moved[name] = after - before
        if name == "chance":
            kept = [v for s in optimizer.state.values() for v in s.values()]
            assert all(v.dtype == torch.float32 for v in kept if isinstance(v, torch.Tensor))
    apart = {name: float((moved[name] - moved["exact"]).norm()) for name in moved}
    along = float(moved["chance"] @ moved["exact"] / moved["exact"].square().sum())
    assert along == pytest.approx(1, abs=0.15)
    assert abs(along - 1) < abs(
        float(moved["nearest"] @ moved["exact"] / moved["exact"].square().sum()) - 1
    )
    assert apart["chance"] > 0


@pytest.mark.parametrize("make", OPTIMIZERS)
def test_saved_and_loaded_it_draws_the_same(make: Callable[..., torch.optim.Optimizer]) -> None:
    model, other = layers(torch.bfloat16), layers(torch.bfloat16)
    optimizer, again = make(model.parameters()), make(other.parameters())
    for one in (optimizer, again):
        round_stochastically(one)
    stepped(model, optimizer, 3)
    other.load_state_dict(model.state_dict())
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    torch.rand(5)  # of the stream that all draw from it takes nothing
    stepped(model, optimizer, 3, 3)
    stepped(other, again, 3, 3)
    assert same(model, other)


@pytest.mark.parametrize("make", OPTIMIZERS)
def test_in_the_backward_pass_it_is_the_same(make: Callable[..., torch.optim.Optimizer]) -> None:
    model, other = layers(torch.bfloat16), layers(torch.bfloat16)
    optimizer, again = make(model.parameters()), make(other.parameters())
    for one in (optimizer, again):
        round_stochastically(one)
    arriving = InBackward(again)
    stepped(model, optimizer, 3)
    for number in range(3):
        with arriving.on():
            stepped(other, again, 1, number)
    arriving.close()
    assert same(model, other)


def test_what_an_update_would_be_is_told_exactly() -> None:
    """A probe sees it before it is rounded, and leaves no trace."""
    model = layers(torch.bfloat16)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0)
    round_stochastically(optimizer)
    parameter = next(model.parameters())
    gradient = torch.ones_like(parameter)
    made = updated_weights(optimizer, optimizer.param_groups[0], parameter, gradient)
    assert made.dtype == torch.float32
    assert torch.allclose(made - parameter.float(), torch.full(made.shape, -1e-5), rtol=0.02)
    assert not optimizer.state


def test_weights_in_float32_are_updated_as_ever() -> None:
    model, other = layers(torch.float32), layers(torch.float32)
    optimizer, again = (torch.optim.AdamW(m.parameters(), lr=1e-3) for m in (model, other))
    round_stochastically(again)
    round_stochastically(again)
    assert type(again).__mro__[1] is torch.optim.AdamW
    schedule = torch.optim.lr_scheduler.LambdaLR(again, lambda _: 1.0)
    stepped(model, optimizer, 3)
    stepped(other, again, 3)
    schedule.step()
    assert same(model, other)
