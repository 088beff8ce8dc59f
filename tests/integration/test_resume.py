"""A run that is killed anywhere and resumed ends as if nothing had happened, bit for bit."""

import json
import multiprocessing
import os
import signal
import time
from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch

from greentrainer.hf import GreenConfig, GreenTrainer, last_whole
from greentrainer.hf.checkpoint import SEAL, is_whole
from tests.conformance.families import build
from tests.tiny import refusal
from tests.trainer import arguments, mixed, rows

KILLS = 20
SAVE_EVERY = 3
GREEN = GreenConfig(rho=0.6, probe_batches=1, every_epochs=0.5)


def trainer(
    folder: Path, green: GreenConfig = GREEN, family: str = "opt", **more: Any
) -> GreenTrainer:
    """Dropout is on, and examples are shuffled: random streams matter."""
    settings = {"save_strategy": "steps", "save_steps": SAVE_EVERY, "num_train_epochs": 2}
    return GreenTrainer(
        build(family),
        arguments(folder, **(settings | more)),
        train_dataset=rows(24),
        green=green,
    )


def train(folder: Path) -> None:
    """Start, or go on from the last whole checkpoint; leave what came of it in a file."""
    made = trainer(folder)
    made.train(resume_from_checkpoint=last_whole(folder) is not None)
    torch.save(outcome(made), folder / "outcome.part")
    os.replace(folder / "outcome.part", folder / "outcome.pt")


def outcome(made: GreenTrainer) -> dict[str, Any]:
    """Weights, optimizer state, books and selections; seconds are no part of it."""
    timeless = [{k: v for k, v in asdict(e).items() if k != "seconds"} for e in made.ledger]
    chosen = [{k: v for k, v in event.items() if k != "seconds"} for event in made.engine.history]
    return {
        "weights": {n: p.detach() for n, p in made.model.named_parameters()},
        "optimizer": made.engine.optimizer.state_dict(),
        "ledger": [e for e in timeless if e["kind"] != "select"],
        "selections": json.loads(json.dumps(chosen)),
    }


def in_child(folder: Path, kill_after: float | None = None, checkpoints: int = 0) -> float:
    """Train in a process of its own; the seconds it took.

    Killed, if told, some seconds after it has written so many checkpoints.
    """
    server = multiprocessing.get_context("forkserver")  # this process has threads of autograd
    server.set_forkserver_preload([__name__])
    child = server.Process(target=train, args=(folder,))
    start = time.perf_counter()
    child.start()
    while kill_after is not None and child.is_alive() and written(folder) < checkpoints:
        time.sleep(0.005)
    child.join(kill_after)
    if child.is_alive():
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)
        child.join()
    return time.perf_counter() - start


def written(folder: Path) -> int:
    """Steps of the last whole checkpoint, in checkpoints of the first one's steps."""
    found = last_whole(folder)
    return 0 if found is None else int(found.name.split("-")[1]) // SAVE_EVERY


def assert_same(a: Any, b: Any, where: str = "") -> None:
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}.{key}")
    else:
        assert a == b, where


@pytest.mark.parametrize("kills", [2, pytest.param(KILLS, marks=pytest.mark.thorough)])
def test_killed_at_any_moment_and_resumed(kills: int, tmp_path: Path) -> None:
    in_child(tmp_path / "first")  # the process that others are forked from begins
    seconds = in_child(tmp_path / "whole")
    whole = torch.load(tmp_path / "whole" / "outcome.pt", weights_only=True)
    chance, landed = Random(0), set()
    for number in range(kills):
        folder = tmp_path / str(number)
        in_child(folder, chance.uniform(0, 0.1) * seconds, checkpoints=number % 4)
        found = last_whole(folder)
        landed.add(None if found is None else found.name)
        in_child(folder)
        assert_same(whole, torch.load(folder / "outcome.pt", weights_only=True))
    assert kills < KILLS or len(landed) > 3  # they were spread over the run


@pytest.mark.parametrize("family", ["t5", "llama"])
def test_lengths_and_accumulation_resume_as_well(family: str, tmp_path: Path) -> None:
    def run(folder: Path, resume: bool | str = False) -> GreenTrainer:
        made = GreenTrainer(
            build(family),
            arguments(folder, save_strategy="steps", save_steps=2, gradient_accumulation_steps=4),
            green=GREEN, **mixed(48),
        )  # fmt: skip
        made.train(resume_from_checkpoint=resume)
        return made

    whole = run(tmp_path)
    assert whole.ledger.rho_spent <= 0.6
    again = run(tmp_path, str(tmp_path / "checkpoint-4"))
    assert_same(outcome(whole), outcome(again))


def test_a_half_written_checkpoint_is_passed_over(tmp_path: Path) -> None:
    trainer(tmp_path).train()
    newest = last_whole(tmp_path)
    assert newest is not None
    assert newest.name == "checkpoint-24"
    weights = newest / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert not is_whole(newest)
    assert last_whole(tmp_path) == tmp_path / "checkpoint-21"
    (tmp_path / "checkpoint-21" / SEAL).write_text('{"half')
    assert last_whole(tmp_path) == tmp_path / "checkpoint-18"
    with pytest.raises(ValueError, match="damaged"):
        trainer(tmp_path).train(resume_from_checkpoint=str(newest))


def test_what_does_not_fit_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no whole checkpoint"):
        trainer(tmp_path).train(resume_from_checkpoint=True)
    trainer(tmp_path, num_train_epochs=1).train()
    with pytest.raises(ValueError, match=r"written at rho 0\.6, this run has rho 0\.7"):
        trainer(tmp_path, GreenConfig(rho=0.7)).train(resume_from_checkpoint=True)
    with pytest.raises(ValueError, match="belongs to another model"):
        trainer(tmp_path, family="llama").train(resume_from_checkpoint=True)
    edit(tmp_path / "checkpoint-12", version=99)
    with pytest.raises(ValueError, match="version 99"):
        trainer(tmp_path).train(resume_from_checkpoint=True)


def edit(folder: Path, **engine: Any) -> None:
    saved = json.loads((folder / SEAL).read_text())
    saved["engine"] |= engine
    (folder / SEAL).write_text(json.dumps(saved))


class Program:
    """What makes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return open, (str(self.marker), "w")


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_a_checkpoint_that_holds_a_program_is_refused_and_not_run(
    name: str, tmp_path: Path
) -> None:
    """Its seal may be whole all the same."""
    trainer(tmp_path, num_train_epochs=1, save_steps=12).train()
    newest = tmp_path / "checkpoint-12"
    torch.save(Program(tmp_path / "marker"), newest / name)
    saved = json.loads((newest / SEAL).read_text())
    saved["files"][name] = (newest / name).stat().st_size
    (newest / SEAL).write_text(json.dumps(saved))
    assert last_whole(tmp_path) == newest
    with refusal(str(newest), "cannot be read"):
        trainer(tmp_path, save_steps=12).train(resume_from_checkpoint=True)
    assert not (tmp_path / "marker").exists()


def test_another_library_version_is_told(tmp_path: Path) -> None:
    trainer(tmp_path, num_train_epochs=1).train()
    path = tmp_path / "checkpoint-9" / SEAL
    saved = json.loads(path.read_text())
    saved["versions"]["torch"] = "0.0.1"
    path.write_text(json.dumps(saved))
    with pytest.warns(UserWarning, match="the last bits may differ"):
        trainer(tmp_path, num_train_epochs=1).train(resume_from_checkpoint=str(path.parent))


def test_old_checkpoints_go_only_when_the_new_one_is_whole(tmp_path: Path) -> None:
    made = trainer(tmp_path, save_total_limit=1, num_train_epochs=1)
    made.train()
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-12"]
    assert is_whole(tmp_path / "checkpoint-12")


def test_the_best_checkpoint_is_named_where_it_ends_up(tmp_path: Path) -> None:
    made = GreenTrainer(
        build("opt"),
        arguments(tmp_path, save_strategy="steps", save_steps=3, eval_strategy="steps",
                  eval_steps=3, load_best_model_at_end=True, metric_for_best_model="eval_loss"),
        train_dataset=rows(24), eval_dataset=rows(4), green=GREEN,
    )  # fmt: skip
    made.train()
    best = made.state.best_model_checkpoint
    assert best is not None
    assert is_whole(Path(best))
    state = json.loads((Path(best) / "trainer_state.json").read_text())
    assert state["best_model_checkpoint"] == best
