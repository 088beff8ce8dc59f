"""Two processes: replicas stay the same, shards give the same weights, a death is an error."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from greentrainer.model import Together
from tests.conformance.families import build
from tests.integration.worker import RHO, STEPS, batch

ROOT = Path(__file__).parents[2]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
ACCELERATE = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu",
              "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no",
              "--dynamo_backend", "no", "--main_process_port", "0"]  # fmt: skip


def launch(
    scenario: str, folder: Path, how: list[str] = TORCHRUN
) -> subprocess.CompletedProcess[str]:
    command = [*how, "-m" if how is TORCHRUN else "--module", "tests.integration.worker"]
    return subprocess.run(
        [*command, scenario, str(folder)], cwd=ROOT, capture_output=True, text=True, timeout=300,
        check=False,
    )  # fmt: skip


def outcome(scenario: str, folder: Path, how: list[str] = TORCHRUN) -> list[dict[str, Any]]:
    done = launch(scenario, folder, how)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((folder / f"{scenario}-{rank}.json").read_text()) for rank in (0, 1)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("processes")


@pytest.fixture(scope="module")
def ddp(folder: Path) -> list[dict[str, Any]]:
    return outcome("ddp", folder)


def test_replicas_are_the_same_after_every_step_and_selection(ddp: list[dict[str, Any]]) -> None:
    assert all(len(one["equal"]) == STEPS and all(one["equal"]) for one in ddp)
    assert ddp[0]["names"] == ddp[1]["names"]
    assert ddp[0]["weights"] == ddp[1]["weights"]
    assert len(ddp[0]["names"]) >= 2
    assert 0.9 * RHO <= ddp[0]["rho_spent"] <= RHO


@pytest.mark.thorough
def test_replicas_agree_on_the_positions_whatever_their_own_batches(folder: Path) -> None:
    one, other = outcome("ddp_positions", folder)
    assert all(one["equal"])
    assert one["tails"] == other["tails"]
    assert one["tails"][0] is not None
    assert one["names"] == other["names"]
    assert one["weights"] == other["weights"]
    assert one["share"] < 1
    assert sum(p["spent"][0] for p in (one, other)) <= RHO * sum(
        p["spent"][1] for p in (one, other)
    )


def test_only_gradients_of_trained_tensors_are_exchanged(ddp: list[dict[str, Any]]) -> None:
    for one in ddp:
        assert one["exchanged"][-1] == one["last"]


def test_replicas_compute_what_one_process_does(ddp: list[dict[str, Any]], folder: Path) -> None:
    """One process on both batches, told the same selections; fp32 sums in another order."""
    model = build("llama").train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    chosen: set[str] = set()
    selections = iter(ddp[0]["names"])
    for step in range(STEPS):
        if step in (0, STEPS // 2):
            chosen = set(next(selections))
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in chosen)
            parameter.grad = None
        pair = [batch(step, rank) for rank in (0, 1)]
        joined = {key: torch.cat([one[key] for one in pair]) for key in pair[0]}
        model(**joined).loss.backward()
        optimizer.step()
    replica = torch.load(folder / "ddp-0.pt", weights_only=True)
    assert len(ddp[0]["names"]) == 2
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.data, replica[name].data, rtol=1e-3, atol=1e-5)


def test_shards_give_exactly_the_weights_of_replicas(
    ddp: list[dict[str, Any]], folder: Path
) -> None:
    fsdp = outcome("fsdp", folder)
    assert all(one["sharded"] == one["tensors"] > 0 for one in fsdp)
    assert fsdp[0]["names"] == ddp[0]["names"]
    assert fsdp[0]["weights"] == fsdp[1]["weights"] == ddp[0]["weights"]


@pytest.mark.thorough
def test_replicas_that_have_drifted_are_noticed(folder: Path) -> None:
    for one in outcome("drifting", folder):
        assert one["error"] is not None
        assert "different weights" in one["error"]


@pytest.mark.thorough
def test_a_killed_process_ends_the_job_and_the_run_resumes(tmp_path: Path) -> None:
    whole = outcome("trainer", tmp_path)
    assert whole[0]["weights"] == whole[1]["weights"]
    assert whole[0]["spent"] != whole[1]["spent"]  # each had batches of its own lengths
    spent, full = (sum(one["spent"][i] for one in whole) for i in (0, 1))
    assert 0.97 * RHO <= spent / full <= RHO
    for checkpoint in (tmp_path / "run").glob("checkpoint-*"):
        for file in checkpoint.iterdir():
            file.unlink()
        checkpoint.rmdir()
    killed = launch("trainer_killed", tmp_path)
    assert killed.returncode != 0
    resumed = outcome("trainer_resumed", tmp_path)
    assert resumed[0]["weights"] == resumed[1]["weights"] == whole[0]["weights"]
    for one, other in zip(resumed, whole, strict=True):
        assert one["names"] == other["names"]
        assert one["spent"] == other["spent"]


@pytest.mark.thorough
def test_each_replica_keeps_activations_of_its_own_examples(tmp_path: Path) -> None:
    found = outcome("trainer_short", tmp_path)
    assert found[0]["weights"] == found[1]["weights"]
    assert found[0]["names"] == found[1]["names"]
    assert all(one["skipped"] > 0 for one in found)
    spent, full = (sum(one["spent"][i] for one in found) for i in (0, 1))
    assert spent / full <= 0.45


@pytest.mark.thorough
def test_accelerate_launch_starts_it_as_well(tmp_path: Path) -> None:
    found = outcome("trainer", tmp_path, ACCELERATE)
    assert found[0]["weights"] == found[1]["weights"]


def test_one_process_is_told_to_start_with_a_launcher() -> None:
    with pytest.raises(ValueError, match="torchrun"):
        Together()
