"""Graphs foretold from other shapes are those that tracing gives, node by node."""

from itertools import combinations
from typing import Any

import pytest
import torch
from torch import nn

from greentrainer.cost import trace
from greentrainer.cost.interpolate import interpolated
from greentrainer.graphs import GraphCache
from tests.conformance.families import FAMILIES, batch_for, build

ROWS = frozenset({0, 2, 4})
DATA_DEPENDENT = {"moe-routed"}


def graph_of(model: nn.Module, rows: int, length: int) -> tuple[tuple[int, ...], Any]:
    return (rows, length) * 3, trace(model, batch_for("", rows=rows, length=length))


CASES = [(family, "eager") for family in FAMILIES if family not in DATA_DEPENDENT]


@pytest.mark.parametrize(("family", "attention"), [*CASES, ("llama", "sdpa"), ("t5", "sdpa")])
def test_lengths_between_traced_ones(family: str, attention: str) -> None:
    model = build(family, attention)
    known = dict(graph_of(model, 2, length) for length in (5, 9, 14, 20))
    for length in (7, 16):
        sizes, traced = graph_of(model, 2, length)
        assert interpolated(known, sizes, ROWS) == traced


@pytest.mark.parametrize("family", ["opt", "llama", "gemma3"])
def test_rows_and_lengths_together(family: str) -> None:
    model = build(family)
    points = [(2, 5), (2, 9), (2, 20), (5, 5), (5, 12), (5, 20), (3, 7), (1, 11), (1, 12)]
    known = dict(graph_of(model, *point) for point in points)
    sizes, traced = graph_of(model, 3, 11)
    assert interpolated(known, sizes, ROWS) == traced


def test_both_sides_of_an_encoder_decoder() -> None:
    model = build("t5")

    def graph(source: int, target: int) -> tuple[tuple[int, ...], Any]:
        batch = batch_for("", rows=2, length=source)
        batch["labels"] = batch_for("", rows=2, length=target)["labels"]
        return (2, source, 2, source, 2, target), trace(model, batch)

    points = [(4, 3), (4, 12), (12, 3), (12, 12), (7, 3), (7, 9), (4, 6), (12, 7), (9, 5), (5, 10)]
    known = dict(graph(*point) for point in points)
    sizes, traced = graph(8, 8)
    assert interpolated(known, sizes, ROWS) == traced


def test_nothing_is_foretold_beyond_or_from_too_little() -> None:
    model = build("llama")
    known = dict(graph_of(model, 2, length) for length in (5, 9, 14, 20))
    assert interpolated(known, (2, 21) * 3, ROWS) is None
    assert interpolated(known, (2, 4) * 3, ROWS) is None
    assert interpolated(known, (3, 9) * 3, ROWS) is None
    for pair in combinations(known, 2):
        assert interpolated({key: known[key] for key in pair}, (2, 10) * 3, ROWS) is None


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


def test_a_constant_part_takes_one_more_trace_and_is_never_lost() -> None:
    model = Merging()

    def graph(length: int) -> tuple[tuple[int, ...], Any]:
        return (2, length, 4), trace(model, torch.zeros(2, length, 4), lambda m, x: m(x))

    known = dict(graph(length) for length in (3, 6, 12))
    sizes, traced = graph(8)
    foretold = interpolated(known, sizes, frozenset({0}))
    assert foretold in (None, traced)
    known |= dict([graph(15)])
    assert interpolated(known, sizes, frozenset({0})) == traced


class Branching(nn.Module):
    """Works twice on long inputs: no polynomial."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.layer(x)
        loss: torch.Tensor = (self.layer(y) if x.shape[1] > 10 else y).sum()
        return loss


def test_a_model_that_branches_on_its_sizes_is_traced() -> None:
    model = Branching()

    def graph(length: int) -> tuple[tuple[int, ...], Any]:
        return (2, length, 4), trace(model, torch.zeros(2, length, 4), lambda m, x: m(x))

    known = dict(graph(length) for length in (3, 6, 9, 12, 15))
    assert interpolated(known, (2, 8, 4), frozenset({0})) is None


class Padding(nn.Module):
    """Works in blocks of 16: constant between known lengths, and more beyond."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        padded = nn.functional.pad(x, (0, 0, 0, -x.shape[1] % 16))
        loss: torch.Tensor = self.layer(padded).sum()
        return loss


def test_a_far_length_does_not_vouch_for_those_before_it() -> None:
    model = Padding()

    def graph(length: int) -> tuple[tuple[int, ...], Any]:
        return (2, length, 4), trace(model, torch.zeros(2, length, 4), lambda m, x: m(x))

    known = dict(graph(length) for length in (9, 10, 11, 12, 100))
    assert interpolated(known, (2, 20, 4), frozenset({0})) is None


def test_the_cache_stops_tracing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("llama")
    cache = GraphCache(model, model.parameters(), None)
    traced = []
    import greentrainer.graphs as graphs

    def noted(*args: Any) -> Any:
        traced.append(1)
        return trace(*args)

    monkeypatch.setattr(graphs, "trace", noted)
    for length in (4, 20, 9, 14, 7, 11, 16, 5, 19):
        batch = batch_for("", length=length)
        assert cache.of_batch(batch) == trace(model, batch)
        assert cache.of_call((), batch) == cache.of_batch(batch)
    assert len(traced) == 3
