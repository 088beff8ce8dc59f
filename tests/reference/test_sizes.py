"""Graphs foretold from one trace at prime sizes are those that tracing gives, node by node."""

import pytest
import torch
from torch import nn

from greentrainer.cost import symbols
from greentrainer.cost.sizes import Symbols, Work
from greentrainer.cost.trace import trace
from greentrainer.engine import GraphCache
from greentrainer.forward import SplitForward
from tests.conformance.families import FAMILIES, batch_for, build

DATA_DEPENDENT = {"mixtral", "moe-routed"}
CASES = [(family, "eager") for family in FAMILIES if family not in DATA_DEPENDENT]


@pytest.mark.parametrize(("family", "attention"), [*CASES, ("llama", "sdpa"), ("t5", "sdpa")])
def test_rows_and_lengths_take_two_traces(family: str, attention: str, traced: list[int]) -> None:
    model = build(family, attention)
    cache = GraphCache(model, [p for p in model.parameters() if p.requires_grad], None)
    for rows, length in ((3, 16), (2, 7), (3, 31), (2, 12)):
        batch = batch_for("", rows=rows, length=length)
        assert cache.of_batch(batch) == trace(model, batch)
        assert cache.of_call((), batch) == cache.of_batch(batch)
    assert len(traced) == 2


def test_both_sides_of_an_encoder_decoder(traced: list[int]) -> None:
    model = build("t5")
    cache = GraphCache(model, model.parameters(), None)
    for source, target in ((12, 9), (8, 8), (20, 4), (5, 10)):
        batch = batch_for("", rows=2, length=source)
        batch["labels"] = batch_for("", rows=2, length=target)["labels"]
        assert cache.of_batch(batch) == trace(model, batch)
    assert len(traced) == 2


@pytest.mark.parametrize("family", ["opt", "bloom", "llama", "gpt2", "phi"])
def test_split_batches_take_two_traces_and_whole_ones_two(family: str, traced: list[int]) -> None:
    model = build(family)
    split = SplitForward(model)
    cache = GraphCache(model, model.parameters(), None, split=split)
    for prompt, length, tail in ((70, 90, 0), (40, 60, 8), (70, 90, 16), (33, 40, 0)):
        batch = batch_for("", rows=2, length=length)
        batch["labels"][:, :prompt] = -100
        with split.at(tail):
            found = cache.of_batch(batch)
            with split.on(batch):
                wanted = trace(model, batch)
        assert (found.costs, found.forward_flops) == (wanted.costs, wanted.forward_flops)
        assert found.full_flops == cache.of_batch(batch).full_flops
    assert len(traced) == 4


def test_beyond_what_was_traced_is_traced_anew(traced: list[int]) -> None:
    model = build("llama")
    cache = GraphCache(model, model.parameters(), None)
    for length in (10, 60, 45):
        batch = batch_for("", length=length)
        assert cache.of_batch(batch) == trace(model, batch)
    assert len(traced) == 4


class Merging(nn.Module):
    """Multiplies two weights at each step: work that no size has a part in."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        merged = self.one.weight @ self.other.weight
        scores = (x @ merged) @ x.mT
        loss: torch.Tensor = (scores @ x).sum()
        return loss


class Branching(nn.Module):
    """Works twice on long inputs: no polynomial."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.layer(x)
        loss: torch.Tensor = (self.layer(y) if x.shape[1] > 10 else y).sum()
        return loss


class Padding(nn.Module):
    """Works in blocks of 16."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        padded = nn.functional.pad(x, (0, 0, 0, -x.shape[1] % 16))
        loss: torch.Tensor = self.layer(padded).sum()
        return loss


class Shifting(nn.Module):
    """Leaves the last position out: a dimension that is no size of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        loss: torch.Tensor = self.layer(x[:, :-1]).sum()
        return loss


@pytest.mark.parametrize("kind", [Merging, Branching, Padding, Shifting])
def test_whatever_a_model_does_with_its_sizes_its_costs_are_those_traced(
    kind: type[nn.Module],
) -> None:
    model = kind()
    cache = GraphCache(model, model.parameters(), lambda m, x: m(x))
    for length in (12, 9, 20, 5, 33):
        batch = torch.zeros(2, length, 4)
        assert cache.of_batch(batch) == trace(model, batch, lambda m, x: m(x))


def test_sizes_are_told_from_a_product() -> None:
    chosen = symbols([4, 60, 20], {64, 7, 61}, [(1, 2)])
    rows, prefix, tail, both = chosen.values
    assert {rows, prefix}.isdisjoint({7, 61})
    work = chosen.factored(2 * 64 * rows * tail * both)
    assert isinstance(work, Work)
    assert work.terms == {(1, 0, 1, 1): 128}
    assert work.at(chosen.with_sums((3, 10, 5))) == 128 * 3 * 5 * 15
    total = 5 + work + chosen.factored(8 * prefix) - 1
    assert total.at(chosen.with_sums((3, 10, 5))) == 4 + 128 * 3 * 5 * 15 + 80
    assert int(total) == 4 + int(work) + 8 * prefix


def test_a_size_that_is_not_in_a_product_is_not_found_there() -> None:
    assert Symbols((11, 26), (11, 13)).factored(13 * 3) == 39
    assert Symbols((11, 26), (11, 13)).factored(13 * 3).terms == {(0, 0): 39}  # type: ignore[attr-defined]
