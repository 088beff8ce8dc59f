"""Shortened forward passes under a Trainer: shuffling, accumulation, checkpointing, resuming."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from greentrainer.forward import ForwardOptions
from greentrainer.hf import GreenConfig, GreenTrainer
from greentrainer.model import blocks
from greentrainer.run.arguments import checkpointing_argument
from greentrainer.select import Blind, by_rule
from tests.conformance.families import build
from tests.trainer import arguments, mixed

KEEP = ForwardOptions(labelled_head=True, keep="memory", keep_bytes=10**8)
EXAMPLES, EPOCHS = 12, 3


def upper_half(model: Any) -> Blind:
    """What is always trained: the second half of the blocks and what comes after them."""
    lower = len(blocks(model)) // 2
    idle = {id(p) for block in list(blocks(model))[:lower] for p in block.parameters()}
    embedding = id(model.get_input_embeddings().weight)
    names = [n for n, p in model.named_parameters() if id(p) not in idle and id(p) != embedding]
    return by_rule(lambda _turn: names)


def trained(
    folder: Path, forward: ForwardOptions, resume: str | None = None, **more: Any
) -> GreenTrainer:
    callbacks = more.pop("callbacks", [])
    model: Any = build("llama")
    green = GreenConfig(rho=1.0, every_epochs=1.0, selector=upper_half(model), forward=forward)
    settings = {"num_train_epochs": EPOCHS, **more}
    data = mixed(EXAMPLES)
    trainer = GreenTrainer(
        model,
        arguments(folder, **settings),
        **data,
        eval_dataset=data["train_dataset"][:2],
        green=green,
        callbacks=callbacks,
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def assert_equal_weights(one: GreenTrainer, other: GreenTrainer) -> None:
    pairs = zip(one.model.named_parameters(), other.model.parameters(), strict=True)
    for (name, weight), same in pairs:
        torch.testing.assert_close(weight, same, rtol=2e-4, atol=2e-5, msg=name)


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"gradient_accumulation_steps": 3},
        *(
            pytest.param(one, marks=pytest.mark.thorough)
            for one in (
                {checkpointing_argument(): True},
                {"train_sampling_strategy": "group_by_length"},
                {"eval_strategy": "steps", "eval_steps": 2},
                {"dataloader_num_workers": 2},
            )
        ),
    ],
    ids=["shuffled", "accumulated", "checkpointed", "grouped", "evaluated", "workers"],
)
def test_training_is_that_of_the_whole_pass(more: dict[str, Any], tmp_path: Path) -> None:
    plain = trained(tmp_path / "plain", ForwardOptions(), **more)
    short = trained(tmp_path / "short", KEEP, **more)
    assert_equal_weights(short, plain)
    skipped = short.ledger.total("skipped_flops")
    assert skipped > 0
    head = trained(tmp_path / "head", ForwardOptions(labelled_head=True), **more)
    assert short.ledger.spent_flops + skipped == pytest.approx(head.ledger.spent_flops, rel=0.1)


class Interrupted(TrainerCallback):
    """Stops in the second epoch, after a checkpoint."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = control.should_save = state.global_step == 8


@pytest.mark.thorough
@pytest.mark.parametrize("keep", ["memory", "disk"])
def test_a_resumed_run_fills_again_and_comes_to_the_same_end(keep: Any, tmp_path: Path) -> None:
    forward = ForwardOptions(
        labelled_head=True, keep=keep, keep_bytes=10**8, keep_folder=tmp_path / "kept"
    )
    (tmp_path / "kept").mkdir()
    plain = trained(tmp_path / "plain", ForwardOptions())
    trained(tmp_path / "run", forward, callbacks=[Interrupted()])
    again = trained(tmp_path / "run", forward, resume=str(tmp_path / "run" / "checkpoint-8"))
    assert_equal_weights(again, plain)
    assert again.ledger.batches == plain.ledger.batches
    assert again.ledger.full_flops == plain.ledger.full_flops
    assert not list((tmp_path / "kept").iterdir())
