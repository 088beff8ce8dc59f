"""The yardstick of every bill: what plain full fine-tuning of a run's data executes."""

from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from greentrainer.config import RunConfig
from greentrainer.engine import GraphCache, hollow
from greentrainer.forward import LabelledHead
from greentrainer.run import EpochOrder, RunResult
from greentrainer.run.reference import affordable_steps, graphs_of, step_flops
from greentrainer.run.training import fit
from greentrainer.tasks import Encoded, encode
from greentrainer.tasks.encode import Collator
from tests.conformance.families import build
from tests.tiny import EOS, PAD, characters

ROWS = 23
"""Twice five batches of four and a short one: steps of two batches, and one of one."""


def examples(count: int = ROWS) -> list[Encoded]:
    """Rows of 5 to 24 tokens."""
    ids = [tuple(4 + (7 * i + j) % 40 for j in range(4 + (5 * i) % 20)) for i in range(count)]
    return [Encoded((*row, EOS), (*(-100 for _ in row[:2]), *row[2:], EOS)) for row in ids]


def config_of(folder: Path, **changes: Any) -> RunConfig:
    settings: dict[str, Any] = {
        "method": "full", "epochs": 2, "batch_size": 4, "accumulate": 2, "max_length": 32,
        "pad_multiple": 16, "output_dir": folder, "seed": 5, "packing": "off",
    }  # fmt: skip
    return RunConfig(**(settings | changes))


def trained(config: RunConfig, family: str) -> tuple[RunResult, list[torch.Tensor]]:
    """A run, and the input of each batch that it trained on."""
    model, seen = build(family), []

    def listen(_module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        ids = kwargs.get("input_ids")
        if type(ids) is torch.Tensor and torch.is_grad_enabled():  # no trace, no evaluation
            seen.append(ids.clone())

    model.register_forward_pre_hook(listen, with_kwargs=True)
    return fit(config, model, characters(), examples(), []), seen


def expected(config: RunConfig, family: str) -> list[int]:
    collate = Collator(PAD, config.pad_multiple, config.max_length)
    return step_flops(config, graphs_of(build(family)), examples(), collate)


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_steps_cost_what_the_ledger_of_a_full_run_says(family: str, tmp_path: Path) -> None:
    config = config_of(tmp_path)
    outcome, _ = trained(config, family)
    booked = iter([e.full_flops for e in outcome.engine.ledger if e.kind == "train"])
    joined = [sum(islice(booked, size)) for size in (2, 2, 2, 2, 2, 2)]
    steps = expected(config, family)
    assert steps == joined
    assert len(set(steps)) > 1
    assert outcome.steps == outcome.planned == len(steps) == 6
    ledger = outcome.engine.ledger
    assert ledger.spent_flops == ledger.full_flops == sum(steps) == sum(outcome.plain_steps)


@pytest.mark.parametrize("method", ["lora", "prompt", "green"])
def test_the_yardstick_is_the_same_for_every_method(method: str, tmp_path: Path) -> None:
    config = config_of(tmp_path, method=method, rho=0.8, probe_batches=1, selections=1)
    outcome, _ = trained(config, "llama")
    assert list(outcome.plain_steps) == expected(config, "llama")


@pytest.mark.parametrize("rho", [0.3, 0.9])
def test_a_shortened_run_makes_the_steps_that_rho_pays_for(rho: float, tmp_path: Path) -> None:
    config = config_of(tmp_path, method="full_at_budget", rho=rho, epochs=3)
    outcome, _ = trained(config, "llama")
    steps = expected(config, "llama")
    share = outcome.engine.ledger.spent_flops / sum(steps)
    assert outcome.engine.ledger.spent_flops == sum(steps[: outcome.steps])
    assert share <= rho < share + steps[outcome.steps] / sum(steps)
    assert outcome.steps == outcome.planned
    assert list(outcome.plain_steps) == steps


@pytest.mark.parametrize("method", ["lora", "bitfit", "lisa", "prompt"])
def test_any_method_stops_early(method: str, tmp_path: Path) -> None:
    """At its own cost a step, within a share of plain full fine-tuning."""
    changes = {"method": method, "rho": 0.4, "epochs": 3, "learning_rate": 1e-3}
    whole, _ = trained(config_of(tmp_path / "whole", **changes), "llama")
    early, _ = trained(config_of(tmp_path / "early", **changes, stop_early=True), "llama")
    plain = sum(early.plain_steps)
    assert early.plain_steps == whole.plain_steps
    assert early.engine.ledger.spent_flops <= 0.4 * plain
    assert 0 < early.steps == early.planned < whole.steps
    booked = [e.flops for e in whole.engine.ledger if e.kind == "train"]
    next_step = sum(booked[2 * early.steps : 2 * early.steps + 2])
    assert early.engine.ledger.spent_flops + next_step > 0.4 * plain


def test_what_stops_early_chooses_nothing_else(tmp_path: Path) -> None:
    for changes, says in (
        ({"method": "green"}, "leave stop_early out"),
        ({"method": "lora", "positions": 8}, "leave labelled_head, positions"),
        ({"method": "full", "labelled_head": True}, "leave labelled_head, positions"),
        ({"method": "full", "activation_checkpointing": True}, "without recomputing"),
        ({"method": "lora", "hours": 1.0}, "keeps to rho or flops"),
    ):
        with pytest.raises(ValueError, match=says):
            trained(config_of(tmp_path, stop_early=True, **changes), "llama")


def test_the_order_is_that_of_the_trainer(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    _, seen = trained(config, "llama")
    collate = Collator(PAD, config.pad_multiple, config.max_length)
    data, order, wanted = examples(), EpochOrder(examples(), 4, config.seed), []
    for epoch in range(2):
        order.set_epoch(epoch)
        groups = order.groups()
        assert sorted(i for group in groups for i in group) == list(range(ROWS))
        assert list(order) == [i for group in groups for i in group]
        assert [len(group) for group in groups] == [4, 4, 4, 4, 4, 3]
        wanted += [collate([data[i] for i in group])["input_ids"] for group in groups]
    assert len(seen) == len(wanted) == 12
    assert all(torch.equal(a, b) for a, b in zip(seen, wanted, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(seen[:6], seen[6:], strict=True))


@given(
    st.lists(st.integers(1, 1000), min_size=1, max_size=30),
    st.fractions(min_value=0, max_value=1).filter(bool),
)
def test_affordable_steps_are_the_most_that_fit(steps: list[int], rho: Any) -> None:
    share = float(rho)
    fitting = [n for n in range(1, len(steps) + 1) if sum(steps[:n]) <= share * sum(steps)]
    if fitting:
        assert affordable_steps(steps, share) == max(fitting)
    else:
        with pytest.raises(ValueError, match="pays for none: train on more examples"):
            affordable_steps(steps, share)


class OnGpu:
    """Stands in for the graphs of a model on a GPU."""

    by_shapes = False

    def __init__(self) -> None:
        with FakeTensorMode():
            weight = torch.empty(1, device="cuda")
        self.model = SimpleNamespace(parameters=lambda: iter([weight]))

    def of_batch(self, batch: Any) -> Any:
        return SimpleNamespace(full_flops=batch)


def test_batches_are_priced_where_the_model_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model on a GPU cannot take what a collator makes."""
    monkeypatch.setattr(encode, "placed", lambda batch, device: int(device.type == "cuda"))
    collate = Collator(PAD, 16, 32)
    steps = step_flops(config_of(tmp_path), cast("GraphCache", OnGpu()), examples(), collate)
    assert steps == [2] * 6


def test_labels_are_looked_at_where_the_model_has_no_values(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    collate = Collator(PAD, config.pad_multiple, config.max_length)

    def priced(model: Any) -> list[int]:
        head = LabelledHead(model)
        graphs = GraphCache(model.train(), model.parameters(), None, head=head)
        return step_flops(config, graphs, examples(), collate)

    assert priced(hollow(build("llama"))) == priced(build("llama"))


class Priced:
    """Stands in for graphs; of each shape a batch costs more than the one before."""

    def __init__(self, by_shapes: bool) -> None:
        self.by_shapes, self.asked = by_shapes, 0
        self.model = SimpleNamespace(parameters=lambda: iter([torch.empty(1)]))

    def of_batch(self, batch: Any) -> Any:
        self.asked += 1
        return SimpleNamespace(full_flops=batch["input_ids"].numel())


def test_a_shape_is_asked_for_once_where_shapes_tell_all(tmp_path: Path) -> None:
    config, collate = config_of(tmp_path), Collator(PAD, 16, 32)
    once, always = Priced(True), Priced(False)
    told = [step_flops(config, cast(GraphCache, g), examples(), collate) for g in (once, always)]
    assert told[0] == told[1]
    assert always.asked == 12  # six batches, twice
    assert once.asked == len({(rows, width) for rows in (4, 3) for width in (16, 32)}) - 1


@pytest.mark.parametrize("rho", [0.6, 0.8])
@pytest.mark.parametrize("rank", [None, 2, 8])
def test_a_share_is_one_of_plain_full_fine_tuning_of_these_rows(
    rank: int | None, rho: float, tmp_path: Path
) -> None:
    """With adapters too, whose own steps cost more or less; and rows are of many lengths."""
    config = config_of(tmp_path, method="green", rho=rho, lora_rank=rank, epochs=1, accumulate=1,
                       probe_batches=1, selections=1, pad_multiple=None)  # fmt: skip
    outcome = fit(config, build("llama"), characters(), examples(60), [])
    spent = outcome.engine.ledger.spent_flops
    assert 0.8 * rho < spent / sum(outcome.plain_steps) <= rho
