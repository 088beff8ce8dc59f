"""Gradient through the tails of rows in runs: budgets, the choice, and what it is joined with."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from greentrainer import AdaptiveBackprop
from greentrainer.config import RunConfig, validated
from greentrainer.cost import flop_counter
from greentrainer.engine.controller import passes_of
from greentrainer.forward import ForwardOptions, Positions, SplitForward
from greentrainer.hf import GreenConfig, GreenTrainer
from greentrainer.importance import measure_tails
from greentrainer.methods import METHODS
from greentrainer.run.asked import positions_of
from tests.conformance.families import batch_for, build
from tests.integration.test_forward_run import llama
from tests.loop import epochs_of, run_through
from tests.trainer import arguments, mixed

PROMPT, LENGTH = 65, 70
HEAD = ForwardOptions(labelled_head=True)
KEEP = ForwardOptions(labelled_head=True, keep="memory", keep_bytes=10**8, examples=16)


def data(count: int = 8) -> list[dict[str, Any]]:
    batches = [batch_for("llama", 2, LENGTH, seed) for seed in range(count)]
    for number, batch in enumerate(batches):
        batch["attention_mask"][1, LENGTH - number % 4 :] = 0
        batch["labels"][:, : PROMPT - number % 3] = -100
        batch["labels"][batch["attention_mask"] == 0] = -100
    return batches


def engine_of(
    model: Any, rho: float, positions: Positions, total: int, **more: Any
) -> AdaptiveBackprop:
    return AdaptiveBackprop(
        model, torch.optim.AdamW(model.parameters(), lr=1e-3), data()[0], rho=rho,
        positions=positions, total_batches=total, every=max(1, total // 2), **more,
    )  # fmt: skip


def trained(
    rho: float, positions: Positions, epochs: int = 4, **more: Any
) -> tuple[AdaptiveBackprop, list[float], int]:
    """The engine, the losses, and the FLOPs that a counter saw in training."""
    order = epochs_of(data(), epochs)
    engine = engine_of(llama(), rho, positions, len(order), **more)
    return engine, *run_through(engine, order, probe=order[0])


@pytest.mark.parametrize("forward", [HEAD, KEEP], ids=["head", "kept"])
@pytest.mark.parametrize(
    "positions",
    [*(pytest.param(n, marks=pytest.mark.thorough) for n in (0, 8)), "choose"],
)
@pytest.mark.parametrize("rho", [0.5, pytest.param(0.6, marks=pytest.mark.thorough)])
def test_rho_bounds_the_run_and_the_books_are_right(
    rho: float, positions: Positions, forward: ForwardOptions
) -> None:
    engine, _, counted = trained(rho, positions, forward=forward)
    ledger = engine.ledger
    assert counted == ledger.forward_flops + ledger.backward_flops
    assert ledger.rho_spent <= rho
    assert 0 < ledger.summary()["tail_tokens"] < ledger.summary()["tokens"]


@pytest.mark.parametrize("allowed", [0.35, 0.9])
def test_a_batch_is_priced_after_the_choice_that_it_brings_about(
    allowed: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch that takes the run to another tail is booked as it is then executed."""
    batch = data()[1]
    engine = engine_of(llama(), 0.6, "choose", 24, forward=HEAD)
    first = engine.reselect([data()[0]])
    monkeypatch.setattr(engine, "_course", lambda *_: allowed * engine.graph.full_flops)
    engine.graphs.of_batch(batch)
    with flop_counter() as count:
        engine.loss(batch).backward()
    assert engine.selection is not None
    assert engine.selection.tail != first.tail
    ledger = engine.ledger
    assert count.get_total_flops() == ledger.forward_flops + ledger.backward_flops


@pytest.mark.thorough
def test_positions_let_more_be_trained_for_the_same() -> None:
    whole, _, _ = trained(0.6, "all", forward=HEAD)
    chosen, _, _ = trained(0.6, "choose", forward=HEAD)
    assert whole.selection is not None
    first = chosen.history[0]
    assert first["tail"] is not None
    assert first["tail_saves_flops"] > 0
    assert len(first["names"]) > len(whole.selection.names)


@pytest.mark.thorough
def test_where_everything_can_be_trained_nothing_is_measured() -> None:
    engine, _, _ = trained(0.6, 0, forward=HEAD)
    assert engine.ledger.probe_flops == 0
    assert engine.history[0]["names"] == engine.graph.tensors


@pytest.mark.thorough
def test_tails_are_weighed_where_the_budget_pays_for_it() -> None:
    """In a long run the value of each tail is measured; in a short one the rule decides."""
    model, batches = llama(), data()
    engine = engine_of(model, 0.5, "choose", 10_000, forward=HEAD)
    reached = engine._controller.reachable(batches[:1], None)
    assert len(reached) > 1
    chosen = engine.reselect(batches[:1])
    measured = engine._chooser.importance
    assert measured.keys() == reached.keys()
    values = {tail: sum(own.values()) for tail, own in measured.items()}
    allowed = engine._controller.allowed
    assert allowed is not None
    assert chosen.importance >= max(
        engine._chooser.selected(basis, allowed - basis.graph.forward_flops).importance
        for basis in engine._controller.bases()
        if basis.tail in measured
    ) - 1e-9 * max(values.values())
    short = engine_of(llama(), 0.5, "choose", 8, forward=HEAD)
    assert short._controller.reachable(batches[:1], None) == {}


def test_importance_of_a_tail_is_its_update_judged_by_the_whole_gradient() -> None:
    model, batch = llama(2).eval(), data()[0]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    split = SplitForward(model)
    names = [name for name, _ in model.named_parameters()]
    before = {name: p.detach().clone() for name, p in model.named_parameters()}

    def gradient(tail: int | None) -> dict[str, torch.Tensor]:
        model.zero_grad()
        with split.at(tail), split.on():
            model(**batch).loss.backward()
        return {name: p.grad.clone() for name, p in model.named_parameters()}

    whole, truncated = gradient(None), gradient(4)
    model.zero_grad()
    with split.on():
        found = measure_tails(
            model, [batch], optimizer, None, {None: names, 4: names[::2]}, split.at
        )
    for name in names:
        wanted = 0.1 * float((whole[name] * whole[name]).sum())
        assert found[None][name] == pytest.approx(wanted, rel=1e-3)
    assert list(found[4]) == names[::2]
    for name in names[::2]:
        wanted = 0.1 * float((truncated[name] * whole[name]).sum())
        assert found[4][name] == pytest.approx(wanted, rel=5e-3, abs=1e-7)
    assert split.tail is None
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name])
        assert parameter.grad is None
    assert not optimizer.state


def test_of_a_large_tensor_a_part_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = llama(2).eval(), data()[0]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    split = SplitForward(model)
    passes = {None: (names := [n for n, _ in model.named_parameters()]), 4: names}
    with split.on():
        exact = measure_tails(model, [batch], optimizer, None, passes, split.at)[4]
        monkeypatch.setattr("greentrainer.importance.worth.REMEMBERED", 500)
        estimated = measure_tails(model, [batch], optimizer, None, passes, split.at)[4]
    small = [n for n, p in model.named_parameters() if p.numel() <= 500]
    assert small
    assert all(estimated[name] == exact[name] for name in small)
    total = sum(exact.values())
    assert sum(estimated.values()) == pytest.approx(total, rel=0.3)


def test_several_tails_take_the_whole_gradient_and_one_tail_does_not() -> None:
    assert passes_of({0: ("a",)}) == {0: ("a",)}
    assert passes_of({0: ("a", "b"), 8: ("b", "c")}) == {
        None: ("a", "b", "c"),
        0: ("a", "b"),
        8: ("b", "c"),
    }


def test_keeping_activations_changes_nothing_but_the_cost() -> None:
    def upper(forward: ForwardOptions) -> tuple[AdaptiveBackprop, list[float], int]:
        return trained(0.4, 0, forward=forward)

    engine, losses, _ = upper(KEEP)
    assert engine.ledger.total("skipped_flops") > 0
    model = llama()
    selections = {event["batch"]: event["names"] for event in engine.history}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    split = SplitForward(model)
    for step, batch in enumerate(epochs_of(data(), 4)):
        if step in selections:
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(name in selections[step])
        with split.at(0):
            loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        assert loss.item() == pytest.approx(losses[step], rel=1e-4)


@pytest.mark.thorough
def test_an_engine_goes_on_from_its_state() -> None:
    model = llama()
    engine = engine_of(model, 0.6, "choose", 16, forward=HEAD)
    chosen = engine.reselect(data()[:1])
    state = json.loads(json.dumps(engine.state_dict()))
    again = engine_of(llama(), 0.6, "choose", 16, forward=HEAD)
    again.load_state_dict(state)
    assert again.selection == chosen
    assert again._savings.split is not None
    assert again._savings.split.tail == chosen.tail
    other = engine_of(llama(), 0.6, "all", 16, forward=HEAD)
    with pytest.raises(ValueError, match="other positions"):
        other.load_state_dict(state)


def test_a_model_that_cannot_be_split_says_so_and_trains_all_positions() -> None:
    model: Any = build("llama-checkpointed").train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.warns(UserWarning, match="no splitting batches: activation checkpointing"):
        engine = AdaptiveBackprop(
            model, optimizer, data()[0], rho=0.7, total_batches=8, positions=0
        )
    engine.reselect(data()[:1])
    assert engine.selection is not None
    assert engine.selection.tail is None


def test_one_whose_loss_comes_out_otherwise_is_found_out() -> None:
    model = llama()

    def loss_fn(model: Any, batch: Any) -> torch.Tensor:
        found: torch.Tensor = model(**batch).logits.mean()
        return found

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.warns(UserWarning, match="no splitting batches: the loss of a piece"):
        AdaptiveBackprop(
            model, optimizer, data()[0], rho=0.7, total_batches=8, positions=0, loss_fn=loss_fn
        )


def test_of_an_encoder_decoder_the_encoder_is_trained_or_not() -> None:
    model: Any = build("t5").train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    batches = [batch_for("", 2, 24, seed) for seed in range(8)]
    for batch in batches:
        batch["labels"] = batch["labels"][:, :6].contiguous()
    engine = AdaptiveBackprop(
        model, optimizer, batches[0], rho=0.6, total_batches=8, every=4, positions="choose"
    )
    assert list(engine._controller.samples) == [0, None]
    run_through(engine, batches, probe=batches[0])
    assert engine.ledger.rho_spent <= 0.6


def test_positions_are_chosen_by_importance_alone() -> None:
    with pytest.raises(ValueError, match="chosen by first_order importance"):
        engine_of(llama(), 0.6, "choose", 8, metric="fisher")
    with pytest.raises(ValueError, match="all, choose, or at least 0"):
        GreenConfig(positions=-1)


@pytest.mark.parametrize(
    "more",
    [{}, {"gradient_accumulation_steps": 2}, {"bf16": True}],
    ids=["plain", "accumulated", "bf16"],
)
def test_a_trainer_that_resumes_ends_where_one_that_ran_through_does(
    tmp_path: Path, more: dict[str, Any]
) -> None:
    def run(folder: Path, resume: str | None = None, **own: Any) -> GreenTrainer:
        model: Any = build("llama")
        green = GreenConfig(rho=0.7, positions=2, forward=HEAD)
        settings = {"num_train_epochs": 2, "save_strategy": "steps", "save_steps": 2, **more, **own}
        trainer = GreenTrainer(model, arguments(folder, **settings), **mixed(12), green=green)
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="no (labelled|splitting)")
            trainer.train(resume_from_checkpoint=resume)
        return trainer

    through = run(tmp_path / "a")
    assert through.engine.history[0]["tail"] == 2
    assert 0 < through.ledger.rho_spent <= 0.7
    resumed = run(tmp_path / "a", resume=str(tmp_path / "a" / "checkpoint-2"))
    assert resumed.ledger.spent_flops == through.ledger.spent_flops
    for one, other in zip(through.model.parameters(), resumed.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("value", [-1, "foo", True, 1.5])
def test_a_wrong_number_of_positions_is_refused_in_one_line(value: Any) -> None:
    with pytest.raises(ValueError, match="give all, choose, or a number from 0 upwards"):
        validated(RunConfig, {"positions": value})


def test_method_green_chooses_positions_and_others_do_not() -> None:
    def asked(**more: Any) -> Positions:
        config = RunConfig(**more)
        return positions_of(config, METHODS[config.method])

    assert asked() == "choose"
    assert asked(positions="all") == "all"
    assert asked(method="full") == "all"
    assert asked(method="lora", positions=3) == 3
    assert asked(metric="random") == "all"
    assert asked(activation_checkpointing=True) == "all"


def test_where_whole_steps_are_paid_for_nothing_is_measured() -> None:
    """With logits where there are labels a whole step costs less than rho: nothing to choose."""
    model, batches = llama(), data(8)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    with AdaptiveBackprop(
        model, optimizer, batches[0], rho=0.995, total_batches=99, positions="choose", forward=HEAD
    ) as engine:
        chosen = engine.reselect(batches[:2])
        assert engine.ledger.probe_flops == 0
        assert chosen.tail is None
        assert len(chosen.names) == len(engine.graph.tensors)
