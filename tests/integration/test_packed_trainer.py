"""Batches that others pack, in `GreenTrainer`: cut all the same, and booked as executed."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from torch import nn
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from greentrainer.cost import flop_counter
from greentrainer.forward import ForwardOptions
from greentrainer.hf import GreenConfig, GreenTrainer
from tests.conformance.families import VOCABULARY, build

SIZES = ((9, 6), (5, 3, 8), (14,), (7, 4), (6, 6), (12, 3))
"""Of the examples in each row."""


def rows() -> list[dict[str, Any]]:
    """As TRL packs them, the last three tokens of each example labelled."""
    torch.manual_seed(2)
    made = []
    for sizes in SIZES:
        ids = torch.randint(3, VOCABULARY, (sum(sizes),)).tolist()
        labels = list(ids)
        for end, size in zip(torch.tensor(sizes).cumsum(0).tolist(), sizes, strict=True):
            labels[end - size : end - 2] = [-100] * (size - 2)
        made.append({"input_ids": ids, "labels": labels, "seq_lengths": list(sizes)})
    return made


def one_by_one() -> list[dict[str, Any]]:
    """The same examples, each in a row of its own, as many steps' worth a row of these."""
    found = []
    for row in rows():
        start = 0
        for size in row["seq_lengths"]:
            part = slice(start, start + size)
            found.append({"input_ids": row["input_ids"][part], "labels": row["labels"][part]})
            start += size
    return found


def trainer_of(folder: Path, green: GreenConfig, packed: bool) -> GreenTrainer:
    data: Any = rows() if packed else one_by_one()
    size = len(data)  # one step an epoch, of the same examples
    arguments = tf.TrainingArguments(
        str(folder), num_train_epochs=3, per_device_train_batch_size=size, use_cpu=True,
        report_to=[], save_strategy="no", disable_tqdm=True, remove_unused_columns=False,
        learning_rate=0.1, optim="sgd", lr_scheduler_type="constant",
    )  # fmt: skip
    return GreenTrainer(
        build("llama", "sdpa"), arguments, train_dataset=data, green=green,
        data_collator=DataCollatorForLanguageModeling(pad_token_id=0, padding_free=packed),
    )  # fmt: skip


def trained(trainer: GreenTrainer) -> list[int]:
    """FLOPs executed in each step."""
    spent: list[int] = []
    step = trainer.training_step

    def counted(*args: Any, **kwargs: Any) -> Any:
        with flop_counter() as count:
            loss = step(*args, **kwargs)
        spent.append(int(count.get_total_flops()))
        return loss

    trainer.training_step = counted  # type: ignore[method-assign]
    trainer.train()
    return spent


@pytest.mark.parametrize("head", [False, True])
@pytest.mark.parametrize("tail", [0, 2])
def test_packed_rows_are_cut_one_example_a_row(tail: int, head: bool, tmp_path: Path) -> None:
    green = GreenConfig(
        rho=1.0, positions=tail, forward=ForwardOptions(labelled_head=head)
    )  # all tensors
    models: list[nn.Module] = []
    tails = []
    for packed in (True, False):
        trainer = trainer_of(tmp_path, green, packed)
        spent = trained(trainer)
        booked = [entry for entry in trainer.ledger if entry.kind == "train"]
        assert spent == [entry.flops for entry in booked]
        tails.append([(entry.tail_tokens, entry.tokens) for entry in booked])
        models.append(trainer.model)
    assert tails[0] == tails[1]
    assert tails[0][0][0] < tails[0][0][1]
    for one, other in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_activations_are_not_kept_of_packed_rows(tmp_path: Path) -> None:
    green = GreenConfig(rho=0.6, forward=ForwardOptions(keep="memory", examples=6))
    trainer = trainer_of(tmp_path, green, packed=True)
    with pytest.warns(UserWarning, match="keeping activations: rows hold several examples each"):
        spent = trained(trainer)
    assert spent == [entry.flops for entry in trainer.ledger if entry.kind == "train"]
