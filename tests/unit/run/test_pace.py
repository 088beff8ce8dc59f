"""Runs so short that choosing what a step trains would take too much of them."""

import warnings
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch

from greentrainer.run import RunResult, pace
from greentrainer.run.pace import seconds_of_step
from greentrainer.run.training import fit
from tests.conformance.families import batch_for, build
from tests.tiny import characters
from tests.unit.run.test_reference import config_of, examples

SPEED = 0.5


@pytest.fixture(autouse=True)
def _on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is settled there, with steps of half a second."""
    monkeypatch.setattr(pace, "cost_of", lambda *_: "seconds")
    monkeypatch.setattr(pace, "seconds_of_step", lambda *_: SPEED)


def run(folder: Path, **changes: Any) -> RunResult:
    settings = {"method": "green", "rho": 0.5, "epochs": 2, "probe_batches": 1, "selections": 1}
    config = config_of(folder, **(settings | changes))
    return fit(config, build("llama"), characters(), examples(), [])


def test_a_short_run_is_one_of_fewer_whole_steps(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"whole steps alone.*more than 5%.*--cost flops"):
        found = run(tmp_path)
    same = run(tmp_path, method="full_at_budget", cost="flops")
    assert found.losses == same.losses
    assert found.steps == found.planned < len(found.plain_steps)
    kinds = {entry.kind for entry in found.engine.ledger}
    assert "probe" not in kinds


@pytest.mark.parametrize(("steps", "chooses"), [(20, False), (20_000, True)])
def test_a_long_run_chooses(steps: int, chooses: bool, tmp_path: Path) -> None:
    """Thirty tensors take .9 s to trace and eight steps 4; a twentieth of so many is 5,000."""
    config, model = config_of(tmp_path, method="green", rho=0.5), build("llama")
    assert pace.pays(config, model, steps, SPEED) == chooses
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        settled = pace.settled(config, model, steps, dict)
    assert (settled.cost, settled.method) == (
        ("seconds", "green") if chooses else ("flops", "full_at_budget")
    )


@pytest.mark.parametrize(
    "asked", [{"positions": 4}, {"labelled_head": True}, {"lora_rank": 4}, {"prompts": "choose"}]
)
def test_what_was_asked_for_is_done(asked: dict[str, Any], tmp_path: Path) -> None:
    config = config_of(tmp_path, method="green", rho=0.5, **asked)
    settled = pace.settled(config, build("llama"), 20, dict)
    assert (settled.cost, settled.method) == ("flops", "green")


def test_a_resumed_run_goes_on_with_what_was_settled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though the device may be faster or slower by then."""
    config, model = config_of(tmp_path, method="green", rho=0.5), build("llama")
    assert pace.settled(config, model, 20_000, dict).method == "green"
    monkeypatch.setattr(pace, "seconds_of_step", lambda *_: 1e-9)
    again = config.model_copy(update={"resume": True})
    assert pace.settled(again, model, 20_000, dict).method == "green"
    with pytest.warns(UserWarning, match="whole steps alone"):
        assert pace.settled(config, model, 20_000, dict).method == "full_at_budget"


@pytest.mark.parametrize("cost", ["flops", "seconds"])
def test_a_cost_that_was_given_is_kept(cost: str, tmp_path: Path) -> None:
    config = config_of(tmp_path, method="green", rho=0.5, cost=cost)
    assert pace.settled(config, build("llama"), 20, dict) == config


def test_timing_a_step_leaves_nothing() -> None:
    model = build("gpt2").eval()
    before, stream = deepcopy(model.state_dict()), torch.get_rng_state()
    assert seconds_of_step(model, batch_for("")) > 0
    assert not model.training
    assert torch.equal(torch.get_rng_state(), stream)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    assert all(p.grad is None for p in model.parameters())
