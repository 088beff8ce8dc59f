"""Choices that read no importance, in a plain loop: budget, books, turns, and the controls."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from greentrainer import AdaptiveBackprop
from greentrainer.config import RunConfig
from greentrainer.cost import flop_counter
from greentrainer.hf import GreenConfig, GreenTrainer
from greentrainer.importance import measure_statistics
from greentrainer.methods import METHODS
from greentrainer.select import CONTROLS, by_rule, control_selection, fixed
from tests.conformance.families import batch_for, build
from tests.trainer import arguments, mixed

RHO = 0.6


def engine_of(metric: str, family: str, data: list[dict[str, Any]], **more: Any) -> Any:
    model = build(family).train()
    selector = METHODS["green"].selector(model, RunConfig(metric=metric))  # type: ignore[arg-type]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    settings = {"rho": RHO, "total_batches": len(data), "every": 8, "selector": selector}
    return AdaptiveBackprop(model, optimizer, data[0], **(settings | more))


def varied(count: int, lengths: int = 3) -> list[dict[str, Any]]:
    return [batch_for("", seed=i, length=8 + 8 * (i % lengths)) for i in range(count)]


def run(engine: AdaptiveBackprop, data: list[dict[str, Any]]) -> int:
    """Train on the batches; the FLOPs executed."""
    executed = 0
    for batch in data:
        if engine.due:
            engine.reselect(data[:1])
        engine.graphs.of_batch(batch)  # traced outside of what is counted
        with flop_counter() as counter:
            engine.model(**batch).loss.backward()
        executed += counter.get_total_flops()
        engine.optimizer.step()
        engine.optimizer.zero_grad()
    return executed


def asked(engine: AdaptiveBackprop) -> list[tuple[str, ...]]:
    return [tuple(event["names"]) for event in engine.history if event["asked"]]


@pytest.mark.parametrize("family", ["llama", "t5"])
@pytest.mark.parametrize("metric", ["random", "top_layers"])
def test_a_blind_choice_keeps_within_the_budget_and_pays_no_probe(metric: str, family: str) -> None:
    data = varied(32, lengths=2)
    engine = engine_of(metric, family, data)
    executed = run(engine, data)
    assert engine.ledger.spent_flops == executed
    assert 0.9 * RHO <= engine.ledger.rho_spent <= RHO
    assert {entry.kind for entry in engine.ledger} == {"train", "select"}
    assert engine.importance == {}
    assert len(asked(engine)) == 4


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_trainer_keeps_it_within_the_budget_too(accumulate: int, tmp_path: Path) -> None:
    model = build("llama")
    selector = METHODS["green"].selector(model, RunConfig(metric="random"))
    trainer = GreenTrainer(
        model,
        arguments(tmp_path, gradient_accumulation_steps=accumulate),
        green=GreenConfig(rho=RHO, every_steps=8, selector=selector),
        **mixed(60),
    )
    trainer.train()
    assert 0.9 * RHO <= trainer.ledger.rho_spent <= RHO
    assert trainer.ledger.probe_flops == 0


def test_random_choices_differ_between_turns_and_top_layers_do_not() -> None:
    data = varied(24)
    for metric, distinct in (("random", 3), ("top_layers", 1)):
        engine = engine_of(metric, "llama", data, total_batches=None)
        found = {engine.reselect(data[:1]).names for _ in range(3)}
        assert len(found) == distinct


def test_within_a_turn_the_same_order_is_drawn_again() -> None:
    """A corrected budget changes how many tensors there are, not which ones come first."""
    data = varied(24)
    engine = engine_of("random", "llama", data)
    chosen = engine.reselect(data[:1])
    again = engine.selector.choose(engine.graph, chosen.backward_budget, 0)
    assert again == chosen
    assert engine.selector.choose(engine.graph, chosen.backward_budget, 1) != chosen


def test_a_resumed_run_draws_what_the_run_would_have_drawn() -> None:
    data = varied(32, lengths=2)
    whole = engine_of("random", "llama", data)
    run(whole, data[:12])
    state = json.loads(json.dumps(whole.state_dict()))
    weights = {n: p.detach().clone() for n, p in whole.model.named_parameters()}
    moments = whole.optimizer.state_dict()

    resumed = engine_of("random", "llama", data)
    resumed.model.load_state_dict(weights)
    resumed.optimizer.load_state_dict(moments)
    resumed.load_state_dict(state)
    assert resumed.selection.names == whole.selection.names
    run(resumed, data[12:])
    run(whole, data[12:])
    assert asked(resumed) == asked(whole)
    assert len(set(asked(whole))) == 4
    assert resumed.ledger.spent_flops == whole.ledger.spent_flops


def test_a_rule_without_a_budget_keeps_its_names_whatever_they_cost() -> None:
    data = varied(20)
    model = build("llama").train()
    names = {"model.layers.0.mlp.up_proj.weight", "model.norm.weight"}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    engine = AdaptiveBackprop(
        model, optimizer, data[0], rho=1.0, total_batches=20, every=5,
        selector=by_rule(lambda _turn: names),
    )  # fmt: skip
    executed = run(engine, data)
    assert [set(chosen) for chosen in asked(engine)] == [names] * 4
    assert all(event["asked"] for event in engine.history)
    assert engine.ledger.spent_flops == executed < engine.ledger.full_flops


def test_a_rule_is_told_which_choice_it_makes() -> None:
    data, turns = varied(20), []

    def names_at(turn: int) -> list[str]:
        turns.append(turn)
        return [f"model.layers.{turn % 3}.mlp.up_proj.weight"]

    model = build("llama").train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    engine = AdaptiveBackprop(
        model, optimizer, data[0], rho=1.0, total_batches=20, every=5, selector=by_rule(names_at)
    )
    run(engine, data)
    assert turns == [0, 1, 2, 3]
    assert [names[0][13] for names in asked(engine)] == ["0", "1", "2", "0"]


def test_fixed_names_are_in_the_graphs_order_and_must_be_some() -> None:
    data = varied(1)
    engine = engine_of("random", "llama", data)
    first, last = engine.graph.tensors[0], engine.graph.tensors[-1]
    found = fixed(engine.graph, [last, "no such tensor", first])
    assert found.names == (first, last)
    assert found.backward_flops == engine.graph.backward_flops([first, last])
    with pytest.raises(ValueError, match="chooses no tensor of this model"):
        fixed(engine.graph, ["no such tensor"])


@pytest.mark.parametrize("metric", CONTROLS)
def test_a_control_chooses_by_its_own_score_at_the_price_of_a_probe(metric: str) -> None:
    data = [batch_for("", seed=i) for i in range(60)]
    model: nn.Module = build("gpt2").train()
    for module in model.modules():  # dropout would draw other numbers in the second measurement
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    engine = AdaptiveBackprop(model, optimizer, data[0], rho=RHO, total_batches=60, metric=metric)
    [reachable] = engine._controller.reachable(data[:2], None).values()
    with engine._bookkeeper.unobserved():
        measured = measure_statistics(model, data[:2], None, reachable)
    with flop_counter() as counter:
        chosen = engine.reselect(data[:2])
    wanted = control_selection(metric, engine.graph, measured, chosen.backward_budget)
    assert chosen.names == wanted.names
    assert engine.ledger.probe_flops == counter.get_total_flops() > 0
