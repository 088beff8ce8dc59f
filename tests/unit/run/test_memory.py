"""How a run keeps within its memory: what is tried, in which order, and what is refused."""

import json
import re
from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch

from greentrainer.config import RunConfig
from greentrainer.cost import pass_memory
from greentrainer.methods import METHODS
from greentrainer.run import RunInputs, RunResult, evaluation, memory
from greentrainer.run.asked import may_shorten
from greentrainer.run.fitting import SPARE, Fitting
from greentrainer.run.training import fit
from greentrainer.run.way import Form, Way
from greentrainer.types import taken
from tests.conformance.families import batch_for, build
from tests.tiny import characters
from tests.unit.run.test_reference import config_of, examples

HELD = 1_000_000
KNOWN: dict[str, dict[Any, Any]] = {}
"""What steps take, told once for all tests."""


@pytest.fixture(autouse=True)
def _held(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the process held little: a tiny model is nothing beside Python."""
    monkeypatch.setattr(memory, "held_on", lambda _device: HELD)
    monkeypatch.setattr(memory, "give_back", lambda: None)


def prompted(seed: int = 0) -> dict[str, torch.Tensor]:
    batch: dict[str, torch.Tensor] = batch_for("", 4, 96, seed)
    batch["labels"][:, :80] = -100
    return batch


def fitting(limit: float, **more: Any) -> Fitting:
    given: dict[str, Any] = {"method": "green", "memory": 1, "batch_size": 4, **more}
    config, model, batch = RunConfig(**given), build("llama").train(), prompted()
    method = METHODS[config.method]
    short = memory.savings_of(config, method, model, batch)
    one = Fitting(config, method, model, batch, int(limit), HELD, short)
    one._known = KNOWN.setdefault(repr(sorted(given.items())), {})
    return one


def way(limit: float, **more: Any) -> Way:
    return fitting(limit, **more).way([prompted(1), prompted(2)])


def forms() -> list[Form]:
    """In the order in which they are tried."""
    return [form for family in fitting(1e12).may.families() for form in family]


def totals() -> list[int]:
    """Of each with everything trained."""
    one = fitting(1e12)
    return [one.total(form, one.names) for form in forms()]


def form_of(way: Way) -> Form:
    return Form(way.updates, way.tail, way.rows, way.recompute)


def test_forms_are_tried_from_what_changes_least() -> None:
    found = forms()
    assert found[:4] == [Form(), Form("backward"), Form(rows=2), Form(rows=1)]
    assert [form.tail for form in found[::4]] == [None, 64, 16, 4, 0]
    text = fitting(1e12, method="full")
    assert [form.recompute for form in text._tried] == [False] * 3 + [True] * 3
    for more in ({"activation_checkpointing": True}, {"stop_early": True}):
        assert not any(form.recompute for form in fitting(1e12, method="full", **more)._tried)


def below(told: int) -> float:
    """A limit that just fails to allow so much."""
    return (told - 100) / (1 - SPARE)


def test_the_first_that_fits_is_taken() -> None:
    told = totals()
    assert len(set(told)) > 4
    for limit in [1e12, *(below(one) for one in sorted(told, reverse=True))]:
        found = way(limit)
        fits = [
            form for form, total in zip(forms(), told, strict=True) if total <= 0.95 * int(limit)
        ]
        assert found.told <= 0.95 * limit
        assert found.held == HELD
        if fits:
            assert (form_of(found), found.names) == (fits[0], None)
        else:
            assert found.names


def test_updates_that_were_asked_for_are_made() -> None:
    assert way(1e12, updates="backward").updates == "backward"
    one = fitting(1e12, method="full")
    told = one.total(Form(), one.names)
    assert way(below(told), method="full").updates == "backward"
    assert form_of(way(below(told), method="full", updates="step")) == Form(rows=2)
    alone: dict[str, Any] = {"method": "full", "updates": "step", "batch_size": 1}
    least = fitting(1e12, **alone)
    assert {form.updates for form in least._tried} == {"step"}
    with pytest.raises(ValueError, match="would do"):
        way(below(min(least.total(form, least.names) for form in least._tried)), **alone)


def test_accumulated_gradients_are_kept() -> None:
    one = fitting(1e12, method="full")
    told = one.total(Form(), one.names)
    added = fitting(1e12, method="full", accumulate=2)
    assert added.total(Form(), added.names) > told  # also while activations are there
    assert form_of(way(below(told), method="full", accumulate=2)) == Form(rows=2)


def test_the_smallest_that_would_do_does() -> None:
    """And a little less does not."""
    with pytest.raises(
        ValueError, match=r"memory: 1\.01 MB is too little.*; (.*) MB would do"
    ) as refused:
        way(HELD + 1)
    assert "a smaller batch_size or max_length" in str(refused.value)
    said = re.search(r"; (\S+) MB would do", str(refused.value))
    assert said is not None
    assert way(1e6 * float(said[1])).names
    one = fitting(HELD + 1)
    least = min(one.total(one._tightest, [name]) for name in one.names) / (1 - SPARE)
    assert way(1.01 * least).names
    with pytest.raises(ValueError, match="too little"):
        way(0.99 * least)


@pytest.mark.parametrize("share", [0.92, 0.97])
def test_those_worth_most_for_their_bytes_may_be_trained(
    share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As good as the best of many sets drawn by lot."""
    low, high = HELD, below(min(totals()))
    one = fitting(low + share * (high - low))
    chance = Random(0)
    worth = {name: chance.random() for name in one.names}
    monkeypatch.setattr(Fitting, "_worth", lambda *_: worth)
    names = one.way([]).names
    assert names
    assert one.total(one._tightest, names) <= one.allowed
    best = sum(worth[name] for name in names)
    for _ in range(3):
        some = chance.sample(one.names, len(one.names))
        while some and one.total(one._tightest, some) > one.allowed:
            some.pop()
        if some:
            assert sum(worth[name] for name in some) <= 1.1 * best


@pytest.mark.parametrize("share", [0.3, 0.6, 0.8, 0.9, 0.97])
@pytest.mark.parametrize("updates", [None, "step"])
def test_what_a_plan_says_is_bought_is_there(share: float, updates: str | None) -> None:
    """Told from what training everything keeps, it is no more than the set itself takes."""
    low, high = HELD, below(min(totals()))
    one = fitting(low + share * (high - low), updates=updates)
    bought = one.bought()
    if bought is None:
        with pytest.raises(ValueError, match="too little"):
            one.way([prompted(1), prompted(2)])
        return
    made, part = bought
    assert 0 < part < 1
    assert made.names
    form = Form(made.updates, made.tail, made.rows, made.recompute)
    assert one.total(form, made.names) <= made.told <= one.allowed


@pytest.mark.parametrize(
    ("training", "ratio"),
    [
        ({}, 2.0),
        ({"optim": "sgd"}, 0.0),
        ({"optim": "sgd", "optim_args": "momentum=0.9"}, 1.0),
        ({"optim": "adafactor"}, 2 / memory.SIDE),
        ({"optim": "galore_adamw"}, 2.0),  # it cannot be tried: as AdamW
    ],
)
def test_what_an_optimizer_keeps_is_tried(
    training: dict[str, Any], ratio: float, tmp_path: Path
) -> None:
    config = config_of(tmp_path, training=training)
    place = torch.device("cpu")
    assert memory.state_ratio(config, torch.float32, place) == pytest.approx(ratio, rel=0.01)
    if not training:
        assert memory.state_ratio(config, torch.bfloat16, place) == pytest.approx(4, rel=0.01)


def test_in_half_precision_steps_work_on_copies() -> None:
    """Of the largest tensor, in float32: beside gradients, or beside activations."""
    one = fitting(1e12, updates="step")
    one.probes = False
    before = {form: one.total(form, one.names) for form in (Form(), Form("backward"))}
    one._half = True
    largest = max(one._bytes([name]) for name in one.names)
    for form, told in before.items():
        step = one._step(form, one.names)
        beside = step.gradients if form.updates == "step" else step.activations
        expected = HELD + step.optimizer + beside + 10 * largest
        assert one.total(form, one.names) == max(told, expected)


@pytest.mark.parametrize(
    ("given", "dtype"),
    [
        ({}, torch.float32),
        ({"memory": 7999}, torch.bfloat16),
        ({"memory": 8000}, torch.float32),
        ({"memory": 7999, "weights": "float32"}, torch.float32),
        ({"weights": "bfloat16"}, torch.bfloat16),
        ({"load_in_4bit": True, "memory": 1}, torch.float32),
    ],
)
def test_weights_are_halved_where_they_take_more_than_half(
    given: dict[str, Any], dtype: torch.dtype
) -> None:
    assert memory.weights_of(RunConfig(**given), lambda: 1000) == dtype


@pytest.mark.parametrize("room", [10**9, 1])
def test_judging_takes_few_passes(room: int) -> None:
    """By other rows where gradients have room; else by each one's own, and nothing is held."""
    one = fitting(1e12)
    found = one._worth(Form(tail=4), [prompted(1), prompted(2)], room)
    assert found.keys() == set(one.names)
    assert any(value > 0 for value in found.values())
    assert len(one.spent) == 1
    assert one.spent[0].forward_flops > 0
    assert all(p.grad is None for p in one.model.parameters())


def run(folder: Path, limit: float) -> RunResult:
    config = config_of(
        folder,
        method="green",
        rho=0.9,
        probe_batches=1,
        memory=int(limit),
        epochs=1,
        accumulate=1,
        fewer="tensors",
    )
    return fit(config, build("llama"), characters(), examples(60), [])


def test_a_run_trains_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = build("llama").state_dict()
    one = run(tmp_path, 1e12)
    assert one.way is not None
    assert one.way.names is None
    monkeypatch.setattr(Fitting, "everything", lambda _self: None)
    found = run(tmp_path, HELD + 0.7 * (one.way.told - HELD))
    assert found.way is not None
    assert found.way.names is not None
    assert len(found.way.names) < len(before)
    assert found.way.rows == 1
    moved = {n for n, v in found.model.state_dict().items() if not torch.equal(v, before[n])}
    assert moved
    assert moved <= {*found.way.names, "lm_head.weight"}
    assert found.plain_steps == one.plain_steps
    kinds = [entry.kind for entry in found.engine.ledger]
    assert "probe" in kinds
    assert found.engine.ledger.spent_flops <= 0.9 * sum(found.plain_steps)


def test_what_cannot_fit_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where moments alone have no room no pass is made to see that activations have none."""
    one = fitting(HELD + 10)
    passes: list[Any] = []
    real = Fitting._step

    def step(self: Fitting, *given: Any) -> Any:
        passes.append(given)
        return real(self, *given)

    monkeypatch.setattr(Fitting, "_step", step)
    assert one.everything() is None
    assert passes == []
    assert all(one._least(form) < one.total(form, one.names) for form in forms())


@pytest.mark.parametrize("form", [Form(rows=2), Form(rows=1), Form(recompute=True)])
def test_exact_forms_make_the_same_steps(
    form: Form, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the same rows, with the same losses; 58 rows leave two for a last step."""
    found: list[RunResult] = []
    for one in (Form(), form):
        told = Way(**asdict(one), limit=1, held=1, told=1)
        monkeypatch.setattr(Fitting, "way", lambda *_, told=told: told)
        given = {"method": "full", "memory": 1, "batch_size": 4, "epochs": 2}
        config = config_of(tmp_path / str(len(found)), **given)
        found.append(fit(config, build("llama"), characters(), examples(58), []))
    whole, pieces = found
    assert whole.steps == pieces.steps == 16
    assert pieces.losses == pytest.approx(whole.losses, rel=1e-4)
    for name, value in whole.model.state_dict().items():
        assert torch.allclose(value, pieces.model.state_dict()[name], atol=2e-4), name
    assert pieces.plain_steps == whole.plain_steps
    ledger = pieces.engine.ledger
    assert (ledger.spent_flops > 1.2 * whole.engine.ledger.spent_flops) == form.recompute


def test_adapters_take_the_place_of_what_does_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At their own rate; the model comes out whole and ordinary, and no tensor was probed."""
    pytest.importorskip("peft")
    before = build("llama").state_dict()
    given: dict[str, Any] = {"method": "green", "epochs": 1, "memory": 10**12}
    roomy = fit(config_of(tmp_path / "a", **given), build("llama"), characters(), examples(60), [])
    assert roomy.way is not None
    assert roomy.way.adapters is None
    real = Fitting.everything
    monkeypatch.setattr(
        Fitting, "everything",
        lambda self: real(self) if "lora" in self.names[0] else None,
    )  # fmt: skip
    (tmp_path / "b").mkdir()
    config = config_of(tmp_path / "b", **given)
    found = fit(config, build("llama"), characters(), examples(60), [])
    assert found.way is not None
    assert (found.way.adapters, found.way.names) == (memory.RANK, None)
    assert found.way.told < roomy.way.told
    assert "probe" not in {entry.kind for entry in found.engine.ledger}
    after = found.model.state_dict()
    assert after.keys() == before.keys()
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert moved == {n for n in before if "proj" in n}
    assert found.plain_steps == roomy.plain_steps
    peak = found.engine.optimizer.param_groups[0]["initial_lr"]
    assert peak == memory.FASTER * config.learning_rate
    kept = memory.kept_way(config.model_copy(update={"resume": True}))
    assert kept == found.way
    again, adapted, _, _ = memory.within(
        config.model_copy(update={"resume": True}), METHODS["green"], build("llama"),
        lambda: pytest.fail("nothing is looked at"),
    )  # fmt: skip
    assert again.learning_rate == memory.FASTER * config.learning_rate
    assert any("lora" in name for name, _ in adapted.named_parameters())


def test_a_trial_of_adapters_leaves_the_model_as_it_was() -> None:
    pytest.importorskip("peft")
    model, config = build("llama"), RunConfig(method="green", memory=1)
    next(model.parameters()).requires_grad_(False)
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    narrow = memory.with_adapters(config, METHODS["green"])
    assert narrow is not None
    state = torch.get_rng_state()
    with memory._adapted(model, METHODS["green"], narrow) as adapted:
        assert any("lora" in name for name, _ in adapted.named_parameters())
    assert {name: p.requires_grad for name, p in model.named_parameters()} == flags
    assert torch.equal(state, torch.get_rng_state())
    for given in ({"fewer": "tensors"}, {"lora_rank": 4}, {"load_in_4bit": True}):
        assert memory.with_adapters(config.model_copy(update=given), METHODS["green"]) is None
    assert memory.with_adapters(config, METHODS["full"]) is None


def test_a_resumed_run_keeps_to_what_was_found(tmp_path: Path) -> None:
    """Though another amount is held by then."""
    config = config_of(tmp_path, method="green", memory=10**12)
    model = build("llama")
    told = Way(
        updates="backward", tail=4, limit=10**12, held=5, told=6, names=("model.norm.weight",)
    )
    (tmp_path / memory.KEPT).write_text(json.dumps(asdict(told)), encoding="utf-8")
    again = config.model_copy(update={"resume": True})
    changed, _, found, spent = memory.within(
        again, METHODS["green"], model, lambda: pytest.fail("nothing is looked at")
    )
    assert (found, spent) == (told, [])
    assert (changed.updates, changed.positions) == ("backward", 4)
    assert [n for n, p in model.named_parameters() if p.requires_grad] == ["model.norm.weight"]


@pytest.mark.parametrize(("given", "rho"), [({}, 1.0), ({"rho": 0.4}, 0.4), ({"hours": 2.0}, None)])
def test_memory_alone_is_a_budget(given: dict[str, Any], rho: float | None) -> None:
    config = RunConfig.model_validate({"memory": 10**9, **given})
    assert config.rho == rho
    assert RunConfig(**given).rho == (rho if given else 0.5)
    assert may_shorten(config, METHODS["green"])
    assert not may_shorten(config, METHODS["full"])
    longer = config.model_copy(update={"positions": "all"})
    assert not may_shorten(longer, METHODS["green"])


@pytest.mark.parametrize(
    ("text", "bytes_"), [("6GB", 6 * 10**9), ("512MiB", 2**29), ("2500000000", 2_500_000_000)]
)
def test_bytes_are_read_as_people_write_them(text: str, bytes_: int) -> None:
    config = RunConfig(memory=text)  # type: ignore[arg-type]
    assert config.memory == bytes_
    assert re.search(rf"^memory: {bytes_}$", config.yaml(), re.M)
    assert RunConfig(memory="auto").memory == "auto"
    for wrong in ("lots", "-5", "0", "6 apples"):
        with pytest.raises(ValueError, match="give a size, as 6GB or 512MiB, or auto"):
            RunConfig(memory=wrong)  # type: ignore[arg-type]


def test_evaluations_have_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """During training moments are there too; and a limit that has none for a row is refused."""
    judged = batch_for("", 4, 96, 7)
    one = fitting(1e12, updates="backward")
    one.judged = judged
    found = one.way([])
    assert found.evaluated == 4
    row, whole = (pass_memory(one.model, taken(judged, slice(n))) for n in (1, 4))
    assert one._evaluation == row < whole
    state = one._step(Form("backward"), one.names).optimizer
    for needed, rows in ((whole, 4), (whole - 1, 2), (row, 1)):
        monkeypatch.setattr(Fitting, "allowed", HELD + state + needed)
        assert one._made(Form("backward"), 0).evaluated == rows
    seen: list[int] = []
    model = build("llama")
    model.register_forward_pre_hook(
        lambda _m, _a, given: seen.append(len(given["input_ids"])), with_kwargs=True
    )
    assert memory.evaluation_rows(HELD + int(1.1 * row), model, judged, 4) == 1
    assert memory.evaluation_rows(HELD + int(1.1 * whole), model, judged, 4) == 4
    given: dict[str, Any] = {"memory": HELD + 1, "batch_size": 4, "output_dir": tmp_path}
    inputs = RunInputs(model, characters(), [], [], examples(8), [])
    narrow = evaluation.loss(inputs, inputs.test, RunConfig(**given))
    assert seen[-1] == 1
    wide = evaluation.loss(inputs, inputs.test, RunConfig(batch_size=4))
    assert seen[-1] == 4
    assert narrow == pytest.approx(wide, rel=1e-5)
