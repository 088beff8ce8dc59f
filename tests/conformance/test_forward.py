"""Shortened forward passes: the same losses and gradients, and the books right, in every family."""

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from greentrainer import AdaptiveBackprop
from greentrainer.forward import ForwardOptions
from greentrainer.select import Blind
from greentrainer.types import CostGraph, Selection
from tests.conformance.families import FAMILIES, batch_for, build
from tests.loop import run_through

ROWS, LENGTH, EPOCHS = 2, 14, 3
BOTH = ForwardOptions(labelled_head=True, keep="memory", keep_bytes=10**8, examples=4)
NO_DROPOUT = {
    "attention_dropout", "activation_dropout", "dropout", "attn_dropout", "hidden_dropout",
    "dropout_rate", "layerdrop", "attn_pdrop", "resid_pdrop", "embd_pdrop", "lora_dropout",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _strict() -> Iterator[None]:
    """A remedy that a family does not allow would warn; here all of them allow all."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="no (labelled|keeping|forward)")
        yield


def without_dropout(family: str) -> nn.Module:
    model: Any = build(family).train()
    for module in model.modules():
        for name in NO_DROPOUT & set(vars(module)):
            if isinstance(getattr(module, name), float):
                setattr(module, name, 0.0)
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model  # type: ignore[no-any-return]


def ragged(family: str, model: Any, seed: int) -> dict[str, Any]:
    """Rows of different lengths, with labels on their ends."""
    batch = batch_for(family, ROWS, LENGTH, seed)
    batch["attention_mask"][1, LENGTH - 3 :] = 0
    batch["labels"][batch["attention_mask"] == 0] = -100
    if not model.config.is_encoder_decoder:
        batch["labels"][:, : 5 + seed] = -100
    return batch


def mixed(first: dict[str, Any], second: dict[str, Any]) -> list[dict[str, Any]]:
    """The same examples in other batches."""
    swap = [torch.tensor([0, 1]), torch.tensor([1, 0])]
    return [
        {k: torch.stack([first[k][i], second[k][j]]) for k in first}
        for i, j in zip(*swap, strict=True)
    ]


class Deeper(Blind):
    """Shallow, then deeper, then shallow again; with one stage shallow twice, then deeper."""

    def __init__(self, graph: CostGraph) -> None:
        names = [graph.above(cut) for cut in range(len(graph.stages) + 1)]
        deep = max(cut for cut, found in enumerate(names) if found)
        turns = [names[deep], names[deep - 1], names[deep]]
        if deep == 1:
            turns = [names[1], names[1], names[0]]
        super().__init__(lambda g, b, turn: _selection(g, turns[turn % 3], b), budgeted=False)


def _selection(graph: CostGraph, names: frozenset[str], budget: float) -> Selection:
    ordered = tuple(name for name in graph.tensors if name in names)
    return Selection(ordered, 0.0, graph.backward_flops(ordered), budget)


def train(
    family: str, forward: ForwardOptions
) -> tuple[list[float], nn.Module, AdaptiveBackprop, int]:
    """Losses, the model, the engine, and what a counter saw of the steps."""
    torch.manual_seed(0)
    model = without_dropout(family)
    batches = [ragged(family, model, seed) for seed in (0, 1)]
    epochs = [batches, mixed(*batches), batches]
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)
    engine = AdaptiveBackprop(
        model, optimizer, batches[0], rho=1.0, total_batches=6, every=2, forward=forward
    )
    engine._chooser.selector = Deeper(engine.graph)
    losses, counted = run_through(engine, [batch for epoch in epochs for batch in epoch])
    return losses, model, engine, counted


@pytest.mark.parametrize("family", FAMILIES)
def test_losses_and_weights_are_those_of_the_whole_pass(family: str) -> None:
    plain, reference, _, _ = train(family, ForwardOptions())
    short, model, engine, counted = train(family, BOTH)
    assert short == pytest.approx(plain, rel=2e-5)
    for (name, weight), other in zip(model.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(weight, other, rtol=2e-4, atol=2e-6, msg=name)
    ledger = engine.ledger
    assert counted == ledger.forward_flops + ledger.backward_flops
    assert ledger.total("skipped_flops") > 0


@pytest.mark.parametrize("family", ["opt", "t5", "llama-lora", "moe-routed"])
def test_the_yardstick_stays_plain_full_fine_tuning(family: str) -> None:
    _, _, plain, _ = train(family, ForwardOptions())
    _, _, short, _ = train(family, BOTH)
    assert short.ledger.full_flops == plain.ledger.full_flops
