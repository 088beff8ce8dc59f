"""Importance judged by other rows, against the same written out; and no trace left."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import nn

from greentrainer import measure_importance
from greentrainer.importance import Pair, measure_worth, worth
from tests.conformance.families import batch_for, build

A, B, C = (batch_for("llama", 3, 10, seed) for seed in (1, 2, 3))


def gradients(model: Any, batch: Any) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(**batch).loss.backward()
    found = {name: p.grad.detach().clone().double() for name, p in model.named_parameters()}
    model.zero_grad()
    return found


def stepped(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for seed in range(steps):
        model(**batch_for("llama", 3, 10, 50 + seed)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def made(kind: Any, steps: int, **more: Any) -> tuple[Any, Any]:
    model: Any = build("llama").train()
    optimizer = kind(model.parameters(), lr=1e-3, **more)
    stepped(model, optimizer, steps)
    return model, optimizer


@pytest.mark.parametrize("steps", [0, 3])
def test_with_gradient_descent_it_is_the_product_of_the_two_gradients(steps: int) -> None:
    """Momentum, of no gradient, is taken off."""
    model, optimizer = made(torch.optim.SGD, steps, momentum=0.9, weight_decay=0.1)
    ours, theirs = gradients(model, A), gradients(model, B)
    found = measure_importance(model, [A], optimizer, judged_by=[B])
    for name, value in found.items():
        assert value == pytest.approx(1e-3 * float((ours[name] * theirs[name]).sum()), rel=1e-3,
                                      abs=1e-9)  # fmt: skip


def test_with_adam_and_no_moments_it_is_the_signs_of_one_against_the_other() -> None:
    model, optimizer = made(torch.optim.AdamW, 0, weight_decay=0.5)
    ours, theirs = gradients(model, A), gradients(model, B)
    found = measure_importance(model, [A], optimizer, judged_by=[B])
    for name, value in found.items():
        naive = 1e-3 * float((ours[name] / (ours[name].abs() + 1e-8) * theirs[name]).sum())
        assert value == pytest.approx(naive, rel=2e-3, abs=1e-7)


def test_what_the_moments_would_do_by_themselves_does_not_count() -> None:
    """After some steps: AdamW's update of this gradient, less that of none."""
    model, optimizer = made(torch.optim.AdamW, 4)
    ours, theirs = gradients(model, A), gradients(model, B)
    found = measure_importance(model, [A], optimizer, judged_by=[B])
    for name, p in model.named_parameters():
        state = optimizer.state[p]
        count = float(state["step"]) + 1
        first, second = 1 - 0.9**count, 1 - 0.999**count

        def update(g: torch.Tensor, s: Any = state, a: float = first, b: float = second) -> Any:
            m = (0.9 * s["exp_avg"].double() + 0.1 * g) / a
            v = (0.999 * s["exp_avg_sq"].double() + 0.001 * g * g) / b
            return -1e-3 * m / (v.sqrt() + 1e-8)

        added = update(ours[name]) - update(torch.zeros_like(ours[name]))
        assert found[name] == pytest.approx(-float((added * theirs[name]).sum()), rel=5e-3,
                                            abs=1e-7)  # fmt: skip


def test_several_batches_are_averaged_on_both_sides() -> None:
    model, optimizer = made(torch.optim.SGD, 0)
    both = measure_importance(model, [A, B], optimizer, judged_by=[C, A])
    single = [
        measure_importance(model, [one], optimizer, judged_by=[other])
        for one in (A, B)
        for other in (C, A)
    ]
    for name, value in both.items():
        mean = sum(one[name] for one in single) / 4
        assert value == pytest.approx(mean, rel=1e-3, abs=1e-9)


def test_of_a_large_tensor_a_part_is_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    model, optimizer = made(torch.optim.SGD, 0)
    whole = measure_importance(model, [A], optimizer, judged_by=[A])
    monkeypatch.setattr(worth, "REMEMBERED", 300)
    part = measure_importance(model, [A], optimizer, judged_by=[A])
    assert part != whole
    assert sum(part.values()) == pytest.approx(sum(whole.values()), rel=0.3)


def test_it_leaves_no_trace() -> None:
    model, optimizer = made(torch.optim.AdamW, 2)
    weights = {n: p.detach().clone() for n, p in model.named_parameters()}
    moments = {n: optimizer.state[p]["exp_avg"].clone() for n, p in model.named_parameters()}
    stream = torch.random.get_rng_state()
    measure_worth(
        model, [Pair(A, B)], optimizer, None, {None: list(weights)}, lambda _tail: nullcontext()
    )
    for name, p in model.named_parameters():
        assert torch.equal(p, weights[name])
        assert p.grad is None
        assert torch.equal(optimizer.state[p]["exp_avg"], moments[name])
    assert torch.equal(torch.random.get_rng_state(), stream)


def test_the_paper_s_forms_judge_by_their_own_rows() -> None:
    model, optimizer = made(torch.optim.SGD, 0)
    with pytest.raises(ValueError, match="judges by its own rows"):
        measure_importance(model, [A], optimizer, metric="two_pass", judged_by=[B])
    with pytest.raises(ValueError, match="no batch"):
        measure_importance(model, [A], optimizer, judged_by=[])
