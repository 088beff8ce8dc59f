"""Short runs of the Trainers on tiny models, and what they really executed."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainingArguments

from greentrainer.cost import flop_counter
from greentrainer.hf import GreenConfig, GreenTrainer
from greentrainer.importance import METRICS
from tests.conformance.families import batch_for

Rows = list[dict[str, torch.Tensor]]


def rows(count: int, length: int = 12) -> Rows:
    """Training rows of one length: each batch has the shape that was traced at the start."""
    batches = (batch_for("", rows=1, length=length, seed=i) for i in range(count))
    return [{key: value[0] for key, value in batch.items()} for batch in batches]


def mixed(count: int) -> dict[str, Any]:
    """Rows of three lengths, and a collator that pads them."""
    data = [rows(count, length=12 + 4 * (i % 3))[i] for i in range(count)]

    def collate(some: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        fill = {"input_ids": 0, "attention_mask": 0, "labels": -100}
        return {
            key: torch.nn.utils.rnn.pad_sequence(
                [row[key] for row in some], batch_first=True, padding_value=value
            )
            for key, value in fill.items()
        }

    return {"train_dataset": data, "data_collator": collate}


def arguments(folder: Path, **more: Any) -> TrainingArguments:
    """Settings of a short run on the CPU that reports nowhere."""
    settings = {
        "per_device_train_batch_size": 2,
        "num_train_epochs": 1,
        "learning_rate": 1e-3,
        "use_cpu": True,
        "report_to": [],
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_strategy": "no",
        "dataloader_pin_memory": False,
    }
    return TrainingArguments(str(folder), **(settings | more))


class Witness(TrainerCallback):
    """Sees at each optimizer step which tensors have a gradient and which weights move."""

    def __init__(self) -> None:
        self.wrong: list[str] = []
        self.steps = 0
        self.trainer: Any = None

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        parameters = dict(kwargs["model"].named_parameters())
        chosen = set(self.trainer.engine.selection.names)
        graded = {name for name, p in parameters.items() if p.grad is not None}
        if graded != chosen:
            self.wrong.append(f"step {state.global_step}: gradients of {graded ^ chosen}")
        self._before = {name: p.detach().clone() for name, p in parameters.items()}

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        parameters = dict(kwargs["model"].named_parameters())
        chosen = set(self.trainer.engine.selection.names)
        moved = {n for n, p in parameters.items() if not torch.equal(p, self._before[n])}
        if not moved or not moved <= chosen:
            self.wrong.append(f"step {state.global_step}: frozen tensors moved: {moved - chosen}")
        self.steps += 1


class Counted(GreenTrainer):
    """Counts the FLOPs that training steps and probes really execute."""

    executed = 0

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        with flop_counter() as counter:
            loss = super().training_step(*args, **kwargs)
        self.executed += counter.get_total_flops()
        return loss


@contextmanager
def probes_counted(trainer: Counted) -> Iterator[None]:
    """Count probes as well: they run between steps, apart from tracing and choosing."""
    shipped = METRICS["first_order"]
    original = shipped.measure

    def counted(*args: Any, **kwargs: Any) -> Any:
        with flop_counter() as counter:
            found = original(*args, **kwargs)
        trainer.executed += counter.get_total_flops()
        return found

    shipped.measure = counted
    try:
        yield
    finally:
        shipped.measure = original


def witnessed(
    model: nn.Module, folder: Path, green: GreenConfig, data: Rows, **more: Any
) -> Counted:
    """Train, and assert that exactly the selection trained and that the books are right."""
    witness = Witness()
    trainer = Counted(
        model, arguments(folder, **more), train_dataset=data, green=green, callbacks=[witness]
    )
    witness.trainer = trainer
    with probes_counted(trainer):
        trainer.train()
    assert witness.wrong == []
    assert witness.steps == trainer.state.global_step > 0
    assert trainer.ledger.spent_flops - trainer.ledger.trace_flops == trainer.executed
    return trainer
