"""When a run packs its batches, and that it trains to the same weights for what its books say."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from greentrainer.config import read
from greentrainer.cost import flop_counter
from greentrainer.methods import METHODS
from greentrainer.run import EpochOrder, RunResult, training
from greentrainer.run.packing import decided, packs_by_lengths, positions_in
from greentrainer.run.training import fit, require_budget
from greentrainer.tasks import Encoded, packing
from greentrainer.tasks.encode import Collator
from tests.conformance.families import build
from tests.tiny import EOS, PAD, characters, refusal

SHORT = (7, 5, 14, 6, 4, 7, 9, 5, 6, 7, 4, 8)
COLLATE = Collator(PAD, 16, 32)


def examples(lengths: tuple[int, ...] = SHORT) -> list[Encoded]:
    """Rows of so many tokens, the last half labelled."""
    ids = [(*(4 + (7 * i + j) % 40 for j in range(n - 1)), EOS) for i, n in enumerate(lengths)]
    return [Encoded(row, (*[-100] * (len(row) // 2), *row[len(row) // 2 :])) for row in ids]


def config_of(folder: Path, **changes: Any) -> Any:
    settings: dict[str, Any] = {
        "method": "full", "batch_size": 4, "max_length": 32, "pad_multiple": 16, "seed": 5,
        "output_dir": folder, "epochs": 2, "learning_rate": 1e-3,
    }  # fmt: skip
    return read(None, settings | changes)


@pytest.fixture
def executed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """FLOPs of each batch that is trained on."""
    found: list[int] = []
    step = training.RunTrainer.training_step

    def counted(*args: Any, **kwargs: Any) -> Any:
        with flop_counter() as count:
            loss = step(*args, **kwargs)
        found.append(int(count.get_total_flops()))
        return loss

    monkeypatch.setattr(training.RunTrainer, "training_step", counted)
    return found


def trained(config: Any, executed: list[int]) -> tuple[RunResult, list[str]]:
    """The run, which executes what its books say, and what it told."""
    executed.clear()
    lines: list[str] = []
    model = build("llama", "sdpa")
    found = fit(config, model, characters(), examples(), [], told=lines.append)
    booked = [entry.flops for entry in found.engine.ledger if entry.kind == "train"]
    assert executed == booked
    return found, lines


@pytest.mark.parametrize(
    "changes", [{}, {"positions": 2}, {"positions": 2, "labelled_head": True}, {"accumulate": 2}]
)
def test_packed_a_run_comes_to_the_same_weights(
    changes: dict[str, Any], tmp_path: Path, executed: list[int]
) -> None:
    slow = {"training": {"optim": "sgd"}, "learning_rate": 0.1}  # Adam would blow up rounding
    packed, told = trained(config_of(tmp_path, packing="on", **changes, **slow), executed)
    plain, _ = trained(config_of(tmp_path, packing="off", **changes, **slow), executed)
    assert told == ["packing: on, 41.7% fewer positions"]
    assert packed.steps == plain.steps
    assert packed.losses == pytest.approx(plain.losses, rel=1e-5)
    for one, other in zip(packed.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    saved = packed.engine.ledger.full_flops / plain.engine.ledger.full_flops
    assert 0.5 < saved < 0.6
    assert sum(packed.plain_steps) == packed.engine.ledger.full_flops


@pytest.mark.parametrize("rho", [0.5, 0.8])
def test_a_budget_is_a_share_of_full_fine_tuning_packed(
    rho: float, tmp_path: Path, executed: list[int]
) -> None:
    settings = {"method": "green", "rho": rho, "epochs": 6, "packing": "on"}
    found, _ = trained(config_of(tmp_path, **settings, steps="all"), executed)
    full, _ = trained(config_of(tmp_path, packing="on", epochs=6), executed)
    assert found.plain_steps == full.plain_steps
    assert found.engine.ledger.spent_flops <= rho * sum(full.plain_steps)


def test_steps_that_a_budget_pays_for_are_fewer_by_what_trying_took(
    tmp_path: Path, executed: list[int]
) -> None:
    settings = {"method": "full_at_budget", "rho": 0.5, "epochs": 3, "packing": "on"}
    found, _ = trained(config_of(tmp_path, **settings), executed)
    ledger = found.engine.ledger
    assert ledger.spent_flops > sum(executed)
    assert 0.3 * sum(found.plain_steps) < ledger.spent_flops <= 0.5 * sum(found.plain_steps)


def test_it_packs_unasked_where_that_saves_a_tenth(tmp_path: Path) -> None:
    model, config = build("llama"), config_of(tmp_path)
    some = decided(config, model, examples(), COLLATE)
    assert some.packs
    assert some.flops > 0
    long = [16] * 10 + [7, 7]
    little = decided(config, model, examples(tuple(long)), COLLATE)
    assert not little.packs
    assert little.says == "packing: off, it would save 8.3% of the positions, not 10%"
    assert little.flops == 0
    for lengths, packs in ((SHORT, True), (tuple(long), False)):
        assert packs_by_lengths(config, model, examples(lengths), COLLATE) is packs
    on = config_of(tmp_path, packing="on")
    assert decided(on, model, examples(tuple(long)), COLLATE).packs


@pytest.mark.parametrize(
    ("family", "why"),
    [
        ("opt", "to OPTForCausalLM examples that share a row are not what they are alone"),
        ("bloom", "to BloomForCausalLM examples that share a row are not what they are alone"),
        ("t5", "an encoder-decoder reads each example for itself"),
    ],
)
def test_a_model_that_would_mix_examples_is_left_unpacked(
    family: str, why: str, tmp_path: Path
) -> None:
    model = build(family)
    found = decided(config_of(tmp_path), model, examples(), COLLATE)
    assert not found.packs
    assert found.says == f"packing: off, {why}"
    with refusal(f"packing: {why}"):
        decided(config_of(tmp_path, packing="on"), model, examples(), COLLATE)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"memory": "1GB"}, "what fits into memory"),
        ({"keep_activations": "memory", "method": "green"}, "activations are kept"),
        ({"method": "prompt"}, "prompt puts tokens before each row"),
        ({"processes": 2}, "each of several processes"),
    ],
)
def test_what_does_not_go_with_packing(changes: dict[str, Any], why: str, tmp_path: Path) -> None:
    config = config_of(tmp_path, packing="on", **changes)
    with refusal(why):
        require_budget(config, METHODS[config.method])
    auto = config.model_copy(update={"packing": "auto"})
    require_budget(auto, METHODS[config.method])
    assert why in decided(auto, build("llama"), examples(), COLLATE).says


def test_yaml_takes_on_for_true(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    for said in ("on", "off", "auto"):
        file.write_text(f"packing: {said}\n")
        assert read(file, {}).packing == said
    with pytest.raises(ValueError, match="packing"):
        read(None, {"packing": "often"})


def test_what_was_decided_is_kept(tmp_path: Path) -> None:
    config, model = config_of(tmp_path), build("llama")
    told: list[str] = []
    fit(config, model, characters(), examples(), [], told=told.append, max_steps=1)
    again = config.model_copy(update={"resume": True})
    outcome = fit(again, build("llama"), characters(), examples(), [], told=told.append)
    assert told[0] == told[1]
    assert [e.kind for e in outcome.engine.ledger].count("probe") == 0


@pytest.mark.parametrize(
    "changes", [{}, {"method": "green", "rho": 0.8, "keep_activations": "nothing"}]
)
def test_a_run_that_was_cut_short_resumes_to_the_same_bits(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    """Packed unasked both times, and the model is tried once."""

    def run(folder: Path, breaks: int = -1, **more: Any) -> RunResult:
        config = config_of(folder, epochs=3, save_every=2, **changes, **more)
        folder.mkdir(exist_ok=True)

        def report(step: int, _loss: float, _engine: Any) -> None:
            if step == breaks:
                raise Broken

        return fit(config, build("llama"), characters(), examples(), [], report=report)

    whole = run(tmp_path / "whole")
    with pytest.raises(Broken):
        run(tmp_path / "cut", breaks=3)
    again = run(tmp_path / "cut", resume=True)
    for one, other in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(one, other)
    kept = [
        [(e.kind, e.flops, e.padded_tokens) for e in found.engine.ledger]
        for found in (whole, again)
    ]
    assert kept[0] == kept[1]
    assert sum(padded for _, _, padded in kept[0]) < 16 * len(SHORT) * whole.steps / 3


class Broken(Exception):
    """Of a run."""


def test_evaluations_have_a_row_for_each_example(tmp_path: Path) -> None:
    model, shapes = build("llama"), []
    config = config_of(tmp_path, packing="on", evaluate_every=1, epochs=1)

    def listen(_model: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        if not torch.is_grad_enabled() and "attention_mask" in kwargs:
            shapes.append(tuple(kwargs["input_ids"].shape))

    model.register_forward_pre_hook(listen, with_kwargs=True)
    outcome = fit(config, model, characters(), examples(), examples()[:4])
    assert shapes[-1] == (4, 16)
    losses = [row["eval_loss"] for row in outcome.log if "eval_loss" in row]
    plain = fit(
        config.model_copy(update={"packing": "off"}),
        build("llama"), characters(), examples(), examples()[:4],
    )  # fmt: skip
    assert losses == pytest.approx([r["eval_loss"] for r in plain.log if "eval_loss" in r])


@given(st.lists(st.integers(1, 40), min_size=1, max_size=20), st.sampled_from([None, 1, 8, 64]))
def test_every_example_lies_in_one_row_that_has_room(lengths: list[int], multiple: Any) -> None:
    laid = packing.layout(lengths, multiple, 64)
    assert sorted(i for row in laid.rows for i in row) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in row) <= laid.width <= 64 for row in laid.rows)
    width = packing.width_of(max(lengths), multiple, 64)
    assert laid.positions <= len(lengths) * width
    assert laid.width <= (1 + packing.MORE) * width
    made = packing.filled(examples(tuple(n + 1 for n in lengths)), packing.layout(
        [n + 1 for n in lengths], multiple, 64), PAD)  # fmt: skip
    begins = made["position_ids"] == 0
    assert bool((made["labels"][begins] == -100).all())
    assert bool(begins[:, 0].all())


def test_positions_are_counted_without_making_batches(tmp_path: Path) -> None:
    config, rows = config_of(tmp_path), examples()
    found = positions_in(config, rows, COLLATE)
    groups = EpochOrder(rows, 4, config.seed).groups()
    made = [replace(COLLATE, packs=True)([rows[i] for i in group]) for group in groups]
    assert found.packed == sum(one["labels"].numel() for one in made)
    assert found.padded == 16 * len(rows)
    assert found.tokens == sum(SHORT)
