"""Runs that choose how many steps they make: budgets, books, schedules, resuming."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from greentrainer import AdaptiveBackprop, Budget
from greentrainer.cost import flop_counter
from greentrainer.forward import ForwardOptions
from greentrainer.hf import GreenCallback, GreenConfig, GreenTrainer
from greentrainer.select import random_selection
from greentrainer.types import PARTS
from tests.conformance.families import batch_for, build
from tests.integration.test_forward_run import llama
from tests.integration.test_positions import HEAD, data
from tests.trainer import arguments, mixed

BATCHES = 40


def everywhere(count: int) -> list[dict[str, Any]]:
    """Batches with labels at all positions: no tail saves anything."""
    return [batch_for("llama", 4, 24, seed) for seed in range(count)]


def engine_of(batches: list[dict[str, Any]], rho: float | Budget, **more: Any) -> AdaptiveBackprop:
    model = llama()
    settings: dict[str, Any] = {"positions": "choose", "steps": "choose", "forward": HEAD} | more
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    return AdaptiveBackprop(
        model, optimizer, batches[0], rho=rho, total_batches=len(batches), **settings
    )


def run(engine: AdaptiveBackprop, batches: list[dict[str, Any]]) -> int:
    """Train until the engine says that it is finished; FLOPs executed, probes counted."""
    executed = 0
    for batch in batches:
        if engine.due:
            with flop_counter() as count:
                engine.reselect(batches[:2])
            executed += count.get_total_flops()
        if engine.finished:
            break
        engine.graphs.of_batch(batch)  # traced outside of what is counted
        with flop_counter() as count:
            engine.loss(batch).backward()
        executed += count.get_total_flops()
        engine.optimizer.step()
        engine.optimizer.zero_grad()
        engine.after_step()
    return executed


def whole(engine: AdaptiveBackprop, batches: list[dict[str, Any]]) -> int:
    """Plain full fine-tuning of all that was asked for."""
    with engine._savings.at(None):
        return sum(engine.graphs.of_batch(batch).full_flops for batch in batches)


@pytest.mark.parametrize("tail", [0, 3, 4, 10_000])
def test_where_positions_are_given_steps_are_chosen_all_the_same(tail: int) -> None:
    batches = data(BATCHES)
    engine = engine_of(batches, 0.4, positions=tail)
    executed = run(engine, batches)
    assert engine.ledger.spent_flops - engine.ledger.trace_flops == executed
    assert 0.36 < engine.ledger.spent_flops / whole(engine, batches) <= 0.4
    assert {event["tail"] for event in engine.history} == {tail}
    assert all(event["alternatives"] for event in engine.history)


@pytest.mark.parametrize("rho", [0.15, 0.3, 0.5, 0.8])
@pytest.mark.parametrize("make", [everywhere, lambda n: data(n)], ids=["labels", "prompts"])
def test_the_budget_holds_and_is_used_and_the_books_are_right(make: Any, rho: float) -> None:
    batches = make(BATCHES)
    engine = engine_of(batches, rho)
    executed = run(engine, batches)
    ledger = engine.ledger
    share = ledger.spent_flops / whole(engine, batches)
    assert ledger.spent_flops - ledger.trace_flops == executed
    assert share <= rho
    step = engine.ledger.full_flops / engine.ledger.batches / whole(engine, batches)
    made_all = engine.ledger.batches == len(batches)
    assert made_all or share >= rho - 1.3 * step
    assert engine.planned == engine.ledger.batches
    assert engine.ending is not None


def test_where_no_tail_saves_anything_it_is_full_fine_tuning_stopped_early() -> None:
    batches = everywhere(BATCHES)
    engine = engine_of(batches, 0.5)
    run(engine, batches)
    assert engine.selection is not None
    assert set(engine.selection.names) == set(engine.graph.tensors)
    assert engine.ledger.batches in (18, 19, 20)  # a probe of a batch or two is paid for, too
    assert engine.ending == "the budget is spent"


def test_a_tail_that_is_worth_nearly_as_much_lets_more_steps_be_made() -> None:
    batches = data(BATCHES)
    engine = engine_of(batches, 0.5)
    run(engine, batches)
    assert engine.selection is not None
    [event] = engine.history
    alternatives = {one["tail"]: one for one in event["alternatives"]}
    assert alternatives[None]["cost"] > 0.8
    best = max(event["alternatives"], key=lambda one: one["progress"])
    assert best["chosen"]
    assert best["tail"] == engine.selection.tail
    assert engine.ledger.batches > alternatives[None]["steps"]


def test_more_than_everything_takes_is_left() -> None:
    batches = data(30)
    engine = engine_of(batches, 1.0)
    run(engine, batches)
    assert engine.ledger.batches >= len(batches) - 1  # finding out what works takes its part
    assert engine.selection is not None
    assert engine.selection.tail is None


@pytest.mark.parametrize(("enough", "made"), [(1, 12), (15, 15), (100, 22)])
def test_rows_seen_again_are_left_where_they_are_worth_nothing(
    enough: int, made: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three passes asked for, and a budget of two: one pass, or so many steps, and no more."""
    monkeypatch.setattr("greentrainer.engine.steps.ENOUGH", enough)
    batches = everywhere(12) * 3
    engine = engine_of(batches, 0.66, fresh=12)
    run(engine, batches)
    assert engine.ledger.batches == pytest.approx(made, abs=1 if enough == 100 else 0)
    assert engine.ending is not None
    assert ("rest of the budget is left" in engine.ending) == (enough < 100)


def test_nothing_is_measured_where_that_would_take_too_much() -> None:
    batches = data(10)
    engine = engine_of(batches, 0.5)
    run(engine, batches)
    assert engine.ledger.probe_flops == 0
    assert engine.selection is not None
    assert engine.selection.tail is not None, "by what tails were worth elsewhere"
    assert len(engine.selection.names) == len(engine.graph.tensors)


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"metric": "two_pass"}, "first_order importance"),
        ({"selector": random_selection}, "exact selector"),
        ({"total_batches": None}, "run of known length"),
    ],
)
def test_what_cannot_choose_says_so(more: dict[str, Any], why: str) -> None:
    model, batch = llama(), data(1)[0]
    settings: dict[str, Any] = {"total_batches": 9, "steps": "choose"} | more
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    with pytest.raises(ValueError, match=why):
        AdaptiveBackprop(model, optimizer, batch, rho=0.5, **settings)


class Rates(TrainerCallback):
    """The learning rate of each step."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seen.append(kwargs["optimizer"].param_groups[0]["lr"])


CHOOSES = GreenConfig(rho=0.5, steps="choose", positions="choose", forward=HEAD, every_steps=8)


def trainer(folder: Path, count: int = 96, **more: Any) -> tuple[GreenTrainer, Rates]:
    torch.manual_seed(0)
    rates = Rates()
    green = GreenTrainer(
        llama(), arguments(folder, **more), green=CHOOSES, callbacks=[rates], **mixed(count)
    )
    return green, rates


def test_the_trainer_ends_with_the_plan_and_the_rate_with_it(tmp_path: Path) -> None:
    green, rates = trainer(tmp_path, warmup_steps=6)
    green.train()
    made, asked = green.state.global_step, green.state.max_steps
    assert asked == 48
    assert 15 < made < 30
    assert made == green.engine.planned
    assert len(rates.seen) == made
    peak = max(rates.seen)
    assert peak == pytest.approx(1e-3, rel=0.1)
    assert rates.seen[-1] < 0.12 * peak, "it comes down to its end"
    assert rates.seen.index(peak) <= 6 * made / asked + 1, "warm-up keeps its part of the run"


@pytest.mark.parametrize("at", [3, 12])
def test_resumed_it_ends_the_same(at: int, tmp_path: Path) -> None:
    one, _ = trainer(tmp_path / "a", save_strategy="steps", save_steps=at)
    one.train()
    two, _ = trainer(tmp_path / "a", save_strategy="steps", save_steps=at)
    two.train(resume_from_checkpoint=str(tmp_path / "a" / f"checkpoint-{at}"))
    assert one.state.global_step == two.state.global_step
    pairs = zip(one.model.parameters(), two.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert one.ledger.spent_flops == two.ledger.spent_flops


def test_a_callback_makes_every_step_and_says_so(tmp_path: Path) -> None:
    from transformers import Trainer

    callback = GreenCallback(GreenConfig(rho=0.6, steps="choose"))
    plain = Trainer(llama(), arguments(tmp_path), callbacks=[callback], **mixed(16))
    with pytest.warns(UserWarning, match="a callback cannot choose"):
        plain.train()
    assert plain.state.global_step == 8


def test_as_published_in_a_word() -> None:
    green = GreenConfig.published(0.7)
    assert (green.rho, green.positions, green.steps) == (0.7, "all", "all")
    assert not green.forward.labelled_head
    assert GreenConfig.published(0.5, probe_batches=1).probe_batches == 1


@pytest.mark.parametrize("prompts", ["last half", "grounds quarter", "choose"])
def test_prompts_read_in_part_are_on_the_books(prompts: str) -> None:
    batches = data(BATCHES)
    engine = engine_of(batches, 0.15, prompts=prompts)
    executed = run(engine, batches)
    ledger = engine.ledger
    assert ledger.spent_flops - ledger.trace_flops == executed
    assert 0.135 < ledger.spent_flops / whole(engine, batches) <= 0.15
    weighed = engine.history[0]["alternatives"]
    assert {one["part"] for one in weighed} == (
        {None, *PARTS} if prompts == "choose" else {prompts}
    )
    chosen = {event["part"] for event in engine.history}
    assert chosen <= {one["part"] for one in weighed}
    unread = ledger.total("unread_tokens", "train")
    assert (unread > 0) == (chosen != {None})
    assert unread + ledger.total("tail_tokens", "train") <= ledger.total("tokens", "train")


def test_what_reading_a_part_is_worth_decides() -> None:
    """Half of a prompt that is worth as much is taken; one that is worth half is not."""
    batches = data(BATCHES)
    for worth, part in ((1.0, "last half"), (0.4, None)):
        engine = engine_of(batches, 0.3, prompts="choose")
        assert engine._steps is not None
        engine._steps.measured = [{None: {"w": 1.0}, 0: {"w": 0.9}, 4: {"w": 0.95}}] * 50
        others = dict.fromkeys(PARTS, 0.1 * worth)
        engine._steps.reading = [{**others, "whole": 1.0, "last half": worth}] * 50
        assert engine.reselect(batches[:2]).part == part
        engine.close()


def test_what_is_no_part_and_where_none_can_be_read() -> None:
    with pytest.raises(ValueError, match="prompts is 'second half': whole, choose, or one of"):
        engine_of(data(BATCHES), 0.5, prompts="second half")
    with pytest.raises(ValueError, match="pass steps='choose'"):
        engine_of(data(BATCHES), 0.5, prompts="choose", steps="all")
    with pytest.warns(UserWarning, match="prompts are read whole"):
        engine = engine_of(everywhere(BATCHES), 0.5, prompts="last half")
    run(engine, everywhere(BATCHES))
    assert engine.ledger.total("unread_tokens") == 0


@pytest.mark.parametrize("tail", [3, 12])
def test_given_positions_are_probed_whatever_their_number(tail: int) -> None:
    engine = engine_of(data(BATCHES) * 20, 0.3, positions=tail)
    chosen = engine.reselect(data(4))
    assert engine.ledger.probe_flops > 0
    assert chosen.tail == tail


def test_a_part_that_was_not_measured_is_no_better_than_a_larger_one_that_was() -> None:
    engine = engine_of(data(BATCHES), 0.3, prompts="choose")
    steps = engine._steps
    assert steps is not None
    halves = {"first half": 0.2, "last half": 0.9, "ends half": 0.9, "grounds half": 0.7}
    steps.reading = [{"whole": 1.0, **halves, "last quarter": 0.3}] * 3
    for which in ("first", "last", "ends", "grounds"):
        sizes = [steps._read(f"{which} {size}") for size in ("half", "quarter", "tenth")]
        assert sizes == sorted(sizes, reverse=True)
    assert steps._read("first quarter") < 0.4


def test_what_cannot_go_with_parts_of_prompts_says_so() -> None:
    batches = data(BATCHES)
    with pytest.raises(ValueError, match="read them whole, or keep none"):
        engine_of(batches, 0.5, prompts="last half",
                  forward=ForwardOptions(keep="memory", keep_bytes=10**8))  # fmt: skip
    engine = engine_of(batches, 0.3, prompts="last half", positions=8)
    run(engine, batches[:4])
    state = engine.state_dict()
    engine.close()
    other = engine_of(batches, 0.3, positions=8)
    with pytest.raises(ValueError, match="other positions or prompts"):
        other.load_state_dict(state)


def test_an_encoder_reads_prompts_whole() -> None:
    model, batch = build("t5").train(), batch_for("t5", 4, 24)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    with pytest.warns(UserWarning, match="prompts are read whole"):
        engine = AdaptiveBackprop(
            model, optimizer, batch, rho=0.5, total_batches=20, positions="choose",
            steps="choose", prompts="last half",
        )  # fmt: skip
    assert engine.reselect([batch, batch]).part is None
