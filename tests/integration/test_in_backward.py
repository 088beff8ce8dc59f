"""Updates made as gradients arrive: the bits of the ordinary step, and no gradients left."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import Adafactor, Trainer, TrainerCallback

from greentrainer.hf import Green, GreenCallback, GreenConfig, GreenTrainer
from greentrainer.model import InBackward
from tests.conformance.families import batch_for, build
from tests.trainer import arguments, rows

OPTIMIZERS: dict[str, Callable[[Any], Any]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9, weight_decay=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-3),
    "fused adamw": lambda p: torch.optim.AdamW(p, lr=1e-3, fused=True),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=1e-3),
    "adafactor of transformers": lambda p: Adafactor(p, lr=None),
}


def stepped(name: str, in_backward: bool, steps: int = 4) -> dict[str, torch.Tensor]:
    """The weights after some steps, two groups with settings of their own and a schedule."""
    torch.manual_seed(0)
    model = build("llama").eval()  # its head is tied
    first, *others = list(model.parameters())
    optimizer: Any = OPTIMIZERS[name](
        [{"params": [first], "weight_decay": 0.0}, {"params": others}]
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step)) if (
        "transformers" not in name
    ) else None  # fmt: skip
    made = InBackward(optimizer) if in_backward else None
    for step in range(steps):
        loss = model(**batch_for("", seed=step)).loss
        if made is None:
            loss.backward()
        else:
            with made.on():
                loss.backward()
            assert all(p.grad is None for p in model.parameters())
        optimizer.step()
        if schedule:
            schedule.step()
        optimizer.zero_grad()
    return {key: value.clone() for key, value in model.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_bits_are_those_of_the_ordinary_step(name: str) -> None:
    assert same(stepped(name, True), stepped(name, False))
    assert not same(stepped(name, True), stepped(name, True, 3))


def test_outside_of_a_step_gradients_are_left_alone() -> None:
    """As a probe's, which is no step."""
    model = build("llama")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    made = InBackward(torch.optim.SGD(model.parameters(), lr=1.0))
    model(**batch_for("")).loss.backward()
    assert all(p.grad is not None for p in model.parameters())
    made.close()
    with made.on():
        model(**batch_for("")).loss.backward()
    assert same(before, model.state_dict())


def test_gradients_are_scaled_by_the_running_norm() -> None:
    """Of steps before: 10 at first, then 10, then .9 * 10 + .1 * 1."""
    weight = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    made = InBackward(optimizer, max_norm=2.0)
    moved = []
    for gradient in (10.0, 1.0, 1.0):
        before = weight.item()
        with made.on():
            (gradient * weight).sum().backward()
        moved.append(before - weight.item())
    assert moved == pytest.approx([2.0, 0.2, 2.0 / 9.1], rel=1e-4)


class Peak(TrainerCallback):
    """The most gradients there were at the end of a step's backward pass."""

    def __init__(self) -> None:
        self.most = 0

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        count = sum(p.grad is not None for p in kwargs["model"].parameters())
        self.most = max(self.most, count)


def trained(
    folder: Path,
    updates: Any,
    resume: bool = False,
    stop: int | None = None,
    dtype: torch.dtype = torch.float32,
    **more: Any,
) -> tuple[dict[str, torch.Tensor], GreenTrainer, int]:
    """A run with probes and selections."""
    torch.manual_seed(0)
    model, peak = build("llama").to(dtype), Peak()
    settings = {"max_grad_norm": 0.0, "save_strategy": "steps", "save_steps": 3, **more}
    green = GreenConfig(
        rho=0.6, probe_batches=1, every_steps=3, updates=updates,
        stochastic_rounding=dtype == torch.bfloat16,
    )  # fmt: skip
    stopping = [Stop(stop)] if stop else []
    trainer = GreenTrainer(
        model, arguments(folder, **settings), train_dataset=rows(36), green=green,
        callbacks=[peak, *stopping],
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=resume)
    return {k: v.clone() for k, v in model.state_dict().items()}, trainer, peak.most


class Stop(TrainerCallback):
    """Ends a run after so many steps."""

    def __init__(self, after: int) -> None:
        self.after = after

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = state.global_step >= self.after


def test_a_run_ends_at_the_same_weights(tmp_path: Path) -> None:
    """And books the same; probes within it change nothing."""
    ordinary, one, most = trained(tmp_path / "a", "step")
    arriving, other, none = trained(tmp_path / "b", "backward")
    assert same(ordinary, arriving)
    assert [e.flops for e in one.ledger] == [e.flops for e in other.ledger]
    assert one.engine.selection == other.engine.selection
    assert (most > 0, none) == (True, 0)


@pytest.mark.parametrize("clipped", [0.0, 0.5])
def test_a_resumed_run_gives_the_same_bits(clipped: float, tmp_path: Path) -> None:
    """The running norm is part of what is saved."""
    whole, *_ = trained(tmp_path / "a", "backward", max_grad_norm=clipped)
    trained(tmp_path / "b", "backward", stop=3, max_grad_norm=clipped)
    resumed, *_ = trained(tmp_path / "b", "backward", resume=True, max_grad_norm=clipped)
    assert same(whole, resumed)


@pytest.mark.parametrize("updates", ["step", "backward"])
def test_so_does_one_that_rounds_stochastically(updates: str, tmp_path: Path) -> None:
    """State in float32 is saved and loaded as such; probes in it leave no trace."""
    half: dict[str, Any] = {"dtype": torch.bfloat16}
    whole, trainer, _ = trained(tmp_path / "a", updates, **half)
    kept = [v for s in trainer.engine.optimizer.state.values() for v in s.values()]
    assert {v.dtype for v in kept if isinstance(v, torch.Tensor)} == {torch.float32}
    assert "probe" in {entry.kind for entry in trainer.engine.ledger}
    trained(tmp_path / "b", updates, stop=3, **half)
    resumed, *_ = trained(tmp_path / "b", updates, resume=True, **half)
    assert same(whole, resumed)


@pytest.mark.parametrize(
    ("asked", "what"),
    [
        ({"gradient_accumulation_steps": 2}, "accumulated gradients"),
        ({"fp16": True}, "scaled gradients"),
    ],
)
def test_what_they_do_not_go_with_is_refused(
    asked: dict[str, Any], what: str, tmp_path: Path
) -> None:
    try:
        made = arguments(tmp_path, **asked)
    except ValueError:
        pytest.skip("this device has no fp16")
    trainer = GreenTrainer(
        build("llama"), made, train_dataset=rows(8), green=GreenConfig(updates="backward")
    )
    with pytest.raises(ValueError, match=f"updates in the backward pass do not go with {what}"):
        trainer.train()


@pytest.mark.parametrize("given", [{"updates": "backward"}, {"stochastic_rounding": True}])
def test_a_callback_names_the_mixin(given: dict[str, Any], tmp_path: Path) -> None:
    trainer = Trainer(
        build("llama"), arguments(tmp_path), train_dataset=rows(8),
        callbacks=[GreenCallback(GreenConfig(**given))],
    )  # fmt: skip
    with pytest.raises(ValueError, match=Green.__name__):
        trainer.train()
    with pytest.raises(ValueError, match="updates is 'never'"):
        GreenConfig(updates="never")  # type: ignore[arg-type]
