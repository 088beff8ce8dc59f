"""Freezing: what is frozen stays bit-identical, whatever the optimizer; and it can be undone."""

from typing import Any

import pytest
import torch
from torch import nn

from greentrainer.model import Freezer


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Linear(4, 4))


def step(model: nn.Module, optimizer: torch.optim.Optimizer, *, to_none: bool = True) -> None:
    model(torch.ones(2, 4)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=to_none)


OPTIMIZERS: list[tuple[Any, dict[str, Any]]] = [
    (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}),
    (torch.optim.AdamW, {"lr": 0.1}),
    (torch.optim.AdamW, {"lr": 0.1, "fused": True}),
    (torch.optim.Adafactor, {"lr": 0.1}),
    (torch.optim.RMSprop, {"lr": 0.1, "momentum": 0.9}),
]


@pytest.mark.parametrize(("kind", "options"), OPTIMIZERS)
@pytest.mark.parametrize("to_none", [True, False])
def test_frozen_weights_do_not_move(kind: Any, options: dict[str, Any], to_none: bool) -> None:
    model = small()
    optimizer = kind(model.parameters(), **options)
    freezer = Freezer(model, optimizer, dict(model.named_parameters()))
    step(model, optimizer, to_none=to_none)
    model(torch.ones(2, 4)).sum().backward()  # a stale gradient is waiting
    freezer.apply({"2.weight"})
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for _ in range(3):
        step(model, optimizer, to_none=to_none)
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {"2.weight"}


def test_param_groups_are_never_touched() -> None:
    model = small()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    groups = [list(map(id, group["params"])) for group in optimizer.param_groups]
    freezer = Freezer(model, optimizer, dict(model.named_parameters()))
    freezer.apply({"2.weight"})
    assert [list(map(id, group["params"])) for group in optimizer.param_groups] == groups


def test_optimizer_state_is_kept_or_dropped_as_told() -> None:
    for policy, kept in (("keep", True), ("drop", False)):
        model = small()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        freezer = Freezer(model, optimizer, dict(model.named_parameters()), policy)  # type: ignore[arg-type]
        step(model, optimizer)
        weight = model.get_parameter("0.weight")
        moments = optimizer.state[weight]["exp_avg"].clone()
        freezer.apply({"2.weight"})
        step(model, optimizer)
        assert (weight in optimizer.state) is kept
        if kept:
            assert torch.equal(optimizer.state[weight]["exp_avg"], moments)
            assert float(optimizer.state[weight]["step"]) == 1


def test_an_unknown_policy_is_refused() -> None:
    model = small()
    with pytest.raises(ValueError, match="keep, drop or offload"):
        Freezer(model, torch.optim.SGD(model.parameters()), [], "forget")  # type: ignore[arg-type]


def test_idle_modules_stay_silent_after_train_and_get_their_mode_back() -> None:
    model = small().train()
    freezer = Freezer(model, torch.optim.SGD(model.parameters()), dict(model.named_parameters()))
    freezer.apply({"2.weight"}, idle_modules=["0", "1"])
    freezer.silence()
    model.train()
    freezer.silence()
    assert [m.training for m in model] == [False, False, True]
    freezer.release()
    assert [m.training for m in model] == [True, True, True]
    assert all(p.requires_grad for p in model.parameters())
