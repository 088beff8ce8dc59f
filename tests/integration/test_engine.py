"""The engine in a plain loop: budget, books, freezing, state, and what it refuses."""

import copy
import json
from typing import Any

import pytest
import torch
from torch import nn

from greentrainer import AdaptiveBackprop
from greentrainer.cost import flop_counter
from greentrainer.engine import PROBE_SHARE
from greentrainer.importance import METRICS
from tests.conformance.families import batch_for, build

FAMILIES = ["llama", "opt", "bloom", "t5", "bart", "gpt2", "gemma3", "llama-checkpointed"]


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)


def batches(count: int, *, mixed: bool = False) -> list[dict[str, Any]]:
    return [batch_for("", seed=i, length=12 + 4 * (i % 3) * mixed) for i in range(count)]


def run(
    model: nn.Module, engine: AdaptiveBackprop, data: list[dict[str, Any]], probe: int = 1
) -> None:
    for batch in data:
        if engine.due:
            engine.reselect(data[:probe])
        model(**batch).loss.backward()
        engine.optimizer.step()
        engine.optimizer.zero_grad()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("rho", [0.5, 0.7])
def test_a_run_spends_at_most_rho_and_nearly_all_of_it(
    family: str, mixed: bool, rho: float
) -> None:
    model = build(family).train()
    data = batches(60, mixed=mixed)
    engine = AdaptiveBackprop(
        model, adamw(model), data[0], rho=rho, total_batches=len(data), every=30
    )
    run(model, engine, data)
    assert engine.ledger.batches == 60
    assert 0.97 * rho <= engine.ledger.rho_spent <= rho


def test_without_a_known_end_the_probe_is_soon_paid_for() -> None:
    model, data = build("opt").train(), batches(40)
    engine = AdaptiveBackprop(model, adamw(model), data[0], rho=0.5)
    engine.reselect(data[:1])
    shares = []
    for batch in data:
        model(**batch).loss.backward()
        engine.optimizer.step()
        engine.optimizer.zero_grad()
        shares.append(engine.ledger.rho_spent)
    assert max(shares[15:]) <= 0.5
    assert shares[-1] >= 0.97 * 0.5


@pytest.mark.parametrize("family", ["llama", "t5", "llama-checkpointed"])
def test_the_ledger_holds_what_is_really_executed(family: str) -> None:
    model, data = build(family).train(), batches(6, mixed=True)
    engine = AdaptiveBackprop(model, adamw(model), data[0], rho=0.6, total_batches=6, every=3)
    for batch in data:
        engine.graphs.of_batch(batch)  # tracing is not to be counted below
    executed = 0
    for batch in data:
        if engine.due:
            with flop_counter() as probe:
                engine.reselect(data[:2])
            executed += probe.get_total_flops()
        with flop_counter() as counter:
            loss = model(**batch).loss
            loss.backward()
        engine.optimizer.step()
        engine.optimizer.zero_grad()
        executed += counter.get_total_flops()
    assert engine.ledger.spent_flops == executed


def test_frozen_tensors_are_bit_identical_over_a_run() -> None:
    model, data = build("opt").train(), batches(8)
    engine = AdaptiveBackprop(model, adamw(model), data[0], rho=0.5, total_batches=8)
    selection = engine.reselect(data[:1])
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for batch in data:
        model(**batch).loss.backward()
        engine.optimizer.step()
        engine.optimizer.zero_grad()
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert moved
    assert moved <= {name for event in engine.history for name in event["names"]}
    assert selection.backward_flops <= selection.backward_budget


def test_evaluation_and_generation_cost_nothing() -> None:
    model, data = build("llama").train(), batches(2)
    engine = AdaptiveBackprop(model, adamw(model), data[0], rho=0.6)
    with torch.no_grad():
        model(**data[0])
    model.eval()
    model(**data[0]).loss.backward()
    assert len(engine.ledger) == 0


def test_at_rho_one_everything_is_trained_without_a_probe() -> None:
    model, data = build("llama").train(), batches(3)
    engine = AdaptiveBackprop(model, adamw(model), data[0], rho=1.0)
    run(model, engine, data)
    assert engine.selection is not None
    assert engine.selection.names == engine.graph.tensors
    assert engine.ledger.probe_flops == 0
    assert engine.ledger.rho_spent == 1.0


def test_state_round_trips_and_goes_on_the_same() -> None:
    def start() -> tuple[nn.Module, AdaptiveBackprop]:
        model = build("opt").train()
        return model, AdaptiveBackprop(
            model, adamw(model), data[0], rho=0.5, total_batches=12, every=6
        )

    data = batches(12)
    model, engine = start()
    run(model, engine, data[:4])
    state = json.loads(json.dumps(engine.state_dict()))
    weights, moments = copy.deepcopy((model.state_dict(), engine.optimizer.state_dict()))

    other, resumed = start()
    other.load_state_dict(weights)
    resumed.optimizer.load_state_dict(moments)
    resumed.load_state_dict(state)
    torch.manual_seed(1)
    run(other, resumed, data[4:])
    torch.manual_seed(1)
    run(model, engine, data[4:])
    assert [e["names"] for e in resumed.history] == [
        list(e["names"]) if i == 0 else e["names"] for i, e in enumerate(engine.history)
    ]
    assert resumed.ledger.spent_flops == engine.ledger.spent_flops
    for (name, a), b in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 99}, "version 99"),
        ({"trainable": ["x"]}, "other trainable tensors"),
        ({"budget": ["rho", 0.9, "flops"]}, "written at rho 0.9"),
    ],
)
def test_a_foreign_state_is_refused(change: dict[str, Any], message: str) -> None:
    model = build("opt").train()
    engine = AdaptiveBackprop(model, adamw(model), batch_for(""), rho=0.5)
    with pytest.raises(ValueError, match=message):
        engine.load_state_dict({**engine.state_dict(), **change})


def test_what_cannot_work_is_refused_in_one_line() -> None:
    model, batch = build("llama").train(), batch_for("")
    optimizer = adamw(model)
    with pytest.raises(ValueError, match=r"choose it between 0\.3\d+ \(for this model\) and 1"):
        AdaptiveBackprop(model, optimizer, batch, rho=0.2)
    engine = AdaptiveBackprop(model, optimizer, batch, rho=0.6)
    with pytest.raises(ValueError, match="no batch"):
        engine.reselect([])
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    with pytest.raises(ValueError, match="loss of batch 1 is nan"):
        engine.reselect([batch])
    engine.close()
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="no trainable parameters"):
        AdaptiveBackprop(model, optimizer, batch, rho=0.6)


def test_closing_gives_the_model_back_as_it_came() -> None:
    model, data = build("opt").train(), batches(4)
    with AdaptiveBackprop(model, adamw(model), data[0], rho=0.5) as engine:
        run(model, engine, data)
    assert all(p.requires_grad for p in model.parameters())
    assert all(module.training for module in model.modules())
    assert not model._forward_pre_hooks
    assert not model._forward_hooks


def test_dropout_is_off_where_no_gradient_passes_and_on_elsewhere() -> None:
    model, batch = build("opt").train(), batch_for("")
    engine = AdaptiveBackprop(model, adamw(model), batch, rho=0.5, total_batches=100)
    engine.reselect([batch])
    model.train()
    model(**batch).loss.backward()
    layers = model.get_submodule("model.decoder.layers")
    modes = [layer.training for layer in layers.children()]
    assert modes == sorted(modes)
    assert modes[0] is False
    assert modes[-1] is True


class Pair(nn.Module):
    """Two towers compared by a loss of the user's own."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.tower(x)  # type: ignore[no-any-return]


def contrast(model: Any, batch: Any) -> torch.Tensor:
    left, right = batch
    loss: torch.Tensor = (model(left) - model(right)).square().mean()
    return loss


def test_a_loss_of_ones_own_that_calls_the_model_twice() -> None:
    torch.manual_seed(0)
    model = Pair().train()
    data = [(torch.randn(4, 6), torch.randn(4 + i % 2, 6)[:4]) for i in range(10)]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    engine = AdaptiveBackprop(
        model, optimizer, data[0], rho=0.9, loss_fn=contrast, total_batches=10
    )
    with flop_counter() as counter:
        engine.reselect(data[:1])
        for batch in data:
            engine.loss(batch).backward()
            optimizer.step()
            optimizer.zero_grad()
    assert engine.ledger.batches == 10
    assert engine.ledger.spent_flops == counter.get_total_flops()


def test_probes_take_a_tenth_of_a_short_run_at_most() -> None:
    model, data = build("llama").train(), batches(40)
    engine = AdaptiveBackprop(model, adamw(model), data[0], rho=0.7, total_batches=40, every=20)
    run(model, engine, data, probe=20)
    assert 0 < engine.ledger.probe_flops <= PROBE_SHARE * 0.7 * engine.ledger.full_flops
    assert 0.97 * 0.7 <= engine.ledger.rho_spent <= 0.7


def test_a_run_too_short_for_its_first_probe_is_refused() -> None:
    model, data = build("llama").train(), batches(1)
    engine = AdaptiveBackprop(model, adamw(model), data[0], rho=0.6, total_batches=1)
    with pytest.raises(ValueError, match="1 batches at rho"):
        engine.reselect(data)


def test_a_later_probe_that_no_longer_fits_is_left_out() -> None:
    model, data = build("llama").train(), batches(12)
    engine = AdaptiveBackprop(model, adamw(model), data[0], rho=0.6, total_batches=12)
    for batch in data:
        engine.reselect(data[:1])
        model(**batch).loss.backward()
        engine.optimizer.step()
        engine.optimizer.zero_grad()
    probes = sum(entry.kind == "probe" for entry in engine.ledger)
    assert 0 < probes < 12
    assert engine.ledger.rho_spent <= 0.6


@pytest.mark.parametrize("family", ["llama", "t5"])
@pytest.mark.parametrize("joined", [2, 4])
def test_the_last_of_accumulated_steps_fits_as_well(family: str, joined: int) -> None:
    model, data = build(family).train(), batches(48, mixed=True)
    engine = AdaptiveBackprop(
        model, adamw(model), data[0], rho=0.6, total_batches=48, accumulate=joined
    )
    for number, batch in enumerate(data, 1):
        if engine.due:
            engine.reselect(data[:1])
        model(**batch).loss.backward()
        if number % joined == 0:
            engine.optimizer.step()
            engine.optimizer.zero_grad()
    assert 0.97 * 0.6 <= engine.ledger.rho_spent <= 0.6


def test_a_probe_that_finds_nothing_worth_training_keeps_what_is_in_force(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, data = build("llama").train(), batches(40)
    engine = AdaptiveBackprop(model, adamw(model), data[0], rho=0.6, total_batches=40, every=20)
    run(model, engine, data[:20])
    first = engine.selection
    assert first is not None

    def hopeless(*_: Any, **__: Any) -> dict[str, float]:
        return dict.fromkeys(engine.graph.tensors, -1.0)

    monkeypatch.setattr(METRICS["first_order"], "measure", hopeless)
    assert engine.reselect(data[:1]).names == first.names
    fresh = AdaptiveBackprop(model, adamw(model), data[0], rho=0.6, total_batches=40)
    with pytest.raises(ValueError, match="positive importance"):
        fresh.reselect(data[:1])
