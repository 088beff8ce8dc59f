"""Shortened forward passes in runs: budgets below a third, stale activations, damage."""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from greentrainer import AdaptiveBackprop
from greentrainer.forward import ForwardOptions
from tests.conformance.families import VOCABULARY, batch_for
from tests.loop import epochs_of, run_through

KEEP = ForwardOptions(labelled_head=True, keep="memory", keep_bytes=10**8, examples=16)


def llama(layers: int = 8) -> Any:
    import transformers as tf

    torch.manual_seed(0)
    config = tf.LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=layers,
        num_attention_heads=4,
    )  # fmt: skip
    return tf.AutoModelForCausalLM.from_config(config).train()


def data(count: int = 8) -> list[dict[str, Any]]:
    batches = [batch_for("llama", 2, 16, seed) for seed in range(count)]
    for batch in batches:
        batch["labels"][:, :12] = -100
    return batches


Meddle = Callable[[Any, AdaptiveBackprop, int], None]


def run(
    rho: float,
    forward: ForwardOptions,
    epochs: int = 4,
    meddle: Meddle = lambda _model, _engine, _step: None,
    after: Meddle = lambda _model, _engine, _step: None,
) -> tuple[AdaptiveBackprop, list[float], int]:
    """The engine, the losses, and the FLOPs that a counter saw in training."""
    model, order = llama(), epochs_of(data(), epochs)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    engine = AdaptiveBackprop(
        model, optimizer, order[0], rho=rho, total_batches=len(order), every=16, forward=forward
    )
    hooks = partial(meddle, model, engine), partial(after, model, engine)
    return engine, *run_through(engine, order, order[0], *hooks)


@pytest.mark.parametrize("rho", [0.2, 0.25, 0.3, 0.5])
def test_rho_bounds_the_run_and_is_spent(rho: float) -> None:
    engine, _, counted = run(rho, KEEP)
    ledger = engine.ledger
    assert counted == ledger.forward_flops + ledger.backward_flops
    assert ledger.rho_spent <= rho
    assert ledger.rho_spent > 0.85 * rho


def test_without_it_less_than_a_third_is_refused() -> None:
    with pytest.raises(ValueError, match="choose it between"):
        run(0.25, ForwardOptions())


@pytest.mark.thorough
def test_what_is_spared_trains_more() -> None:
    def elements(forward: ForwardOptions) -> float:
        engine = run(0.5, forward)[0]
        sizes = engine.graph.sizes
        return sum(
            sum(sizes[n] for n in event["names"]) for event in engine.history if event["asked"]
        )

    plain, head, both = (
        elements(forward)
        for forward in (ForwardOptions(), ForwardOptions(labelled_head=True), KEEP)
    )
    assert plain < head < both


def test_a_frozen_weight_changed_on_purpose_is_caught() -> None:
    """The losses are those of the run that keeps nothing, though its weights change midway."""

    def change(model: Any, _engine: AdaptiveBackprop, step: int) -> None:
        if step == 12:
            with torch.no_grad():
                model.model.layers[0].mlp.down_proj.weight.mul_(1.5)

    names: list[tuple[str, ...]] = []

    def record(_model: Any, engine: AdaptiveBackprop, _step: int) -> None:
        assert engine.selection is not None
        names.append(engine.selection.names)

    with pytest.warns(UserWarning, match="kept activations were dropped: a frozen weight"):
        _, short, _ = run(0.3, KEEP, meddle=change, after=record)

    def replay(model: Any, engine: AdaptiveBackprop, step: int) -> None:
        change(model, engine, step)
        engine._freezer.apply(names[step])

    with pytest.warns(UserWarning, match="times the FLOPs"):  # frozen behind the engine's back
        _, plain, _ = run(1.0, ForwardOptions(), meddle=replay)
    assert short == pytest.approx(plain, rel=2e-4)


@pytest.mark.thorough
def test_bytes_are_bounded_and_the_run_goes_on() -> None:
    few = ForwardOptions(labelled_head=True, keep="memory", keep_bytes=5_000, examples=16)
    engine, _, counted = run(0.45, few)
    assert engine.ledger.rho_spent <= 0.45
    assert counted == engine.ledger.forward_flops + engine.ledger.backward_flops


def test_augmented_examples_are_new_examples() -> None:
    model, batches = llama(), data(2)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-9)
    engine = AdaptiveBackprop(
        model, optimizer, batches[0], rho=0.6, total_batches=8, every=8, forward=KEEP
    )
    engine.reselect([batches[0]])
    for step in range(4):
        batch = {k: v.clone() for k, v in batches[0].items()}
        batch["input_ids"][:, 0] = 3 + step
        engine.loss(batch).backward()
        assert list(engine.ledger)[-1].skipped_flops <= 0  # what making them takes is spent
        optimizer.zero_grad()
    engine.loss(batch).backward()
    assert list(engine.ledger)[-1].skipped_flops > 0


def test_evaluation_between_steps_is_whole_and_leaves_no_trace() -> None:
    model, batches = llama(), data(2)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-9)
    with torch.no_grad():
        model.eval()
        wanted = model(**batches[0])
        model.train()
    engine = AdaptiveBackprop(
        model, optimizer, batches[0], rho=0.6, total_batches=8, every=8, forward=KEEP
    )
    engine.reselect([batches[0]])
    engine.loss(batches[0]).backward()
    with torch.no_grad():
        model.eval()
        got = model(**batches[0])
    assert torch.equal(got.logits, wanted.logits)
    assert torch.equal(got.loss, wanted.loss)


def test_an_error_in_the_forward_pass_leaves_the_model_whole() -> None:
    model, batches = llama(), data(2)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-9)
    engine = AdaptiveBackprop(
        model, optimizer, batches[0], rho=0.6, total_batches=8, every=8, forward=KEEP
    )
    engine.reselect([batches[0]])
    engine.loss(batches[0]).backward()

    def fail(*_: Any) -> None:
        raise RuntimeError("out of memory")

    handle = model.model.norm.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        engine.loss(batches[0])
    handle.remove()
    assert not any("forward" in vars(module) for module in model.modules())


class Doubled(torch.nn.Module):
    """A head that is no linear map."""

    def __init__(self, head: torch.nn.Linear) -> None:
        super().__init__()
        self.inner, self.weight = head, head.weight

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.inner(hidden)
        return logits - logits.mean(1, keepdim=True)  # over positions


def test_a_head_that_needs_all_positions_is_left_alone() -> None:
    model, batches = llama(), data(2)
    model.lm_head = Doubled(model.lm_head)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-9)
    with pytest.warns(UserWarning, match="no labelled head: the loss of a piece"):
        engine = AdaptiveBackprop(model, optimizer, batches[0], rho=0.6, forward=KEEP)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        engine.reselect([batches[0]])
        engine.loss(batches[0]).backward()
    engine.close()
