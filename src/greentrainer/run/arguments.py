"""The Trainer's own settings, from a run's configuration."""

import dataclasses
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, get_args, get_type_hints

import torch
from pydantic import TypeAdapter, ValidationError
from transformers import TrainingArguments

from greentrainer.config import RunConfig, nearest
from greentrainer.hf import FSDP
from greentrainer.hf import trackers as trackers

CHECKPOINTS = "checkpoints"
"""Where they are, in the folder of a run."""


def steps_of(config: RunConfig, examples: int) -> int:
    """Optimizer steps of the run."""
    batches = -(-examples // config.batch_size)
    each = -(-batches // config.count)
    return config.epochs * -(-each // config.accumulate)


def arguments_of(
    config: RunConfig, examples: int, max_steps: int = -1, evaluated: int | None = None
) -> TrainingArguments:
    """The Trainer's own settings.  evaluated: rows at a time of evaluations, None for a batch's.

    Raises ValueError for an unknown or conflicting one.
    """
    steps = steps_of(config, examples) if max_steps < 0 else max_steps
    every = config.evaluate_every
    best = {
        "load_best_model_at_end": True,
        "metric_for_best_model": "eval_loss",
        "restore_callback_states_from_checkpoint": True,
    }
    saving = config.save_every or (every if config.patience else None)
    own: dict[str, Any] = {
        "output_dir": str(config.output_dir / CHECKPOINTS),
        "num_train_epochs": config.epochs,
        "max_steps": max_steps,
        "per_device_train_batch_size": config.batch_size,
        "per_device_eval_batch_size": evaluated or config.batch_size,
        "gradient_accumulation_steps": config.accumulate,
        "learning_rate": config.learning_rate,
        "weight_decay": config.weight_decay,
        "warmup_steps": min(math.ceil(config.warmup * steps), max(steps - 1, 0)),
        "seed": config.seed,
        "bf16": config.bf16,
        checkpointing_argument(): config.activation_checkpointing,
        "eval_strategy": "steps" if every else "no",
        "eval_steps": every,
        "save_strategy": "steps" if saving else "no",
        "save_steps": saving or 500,
        "save_total_limit": config.keep,
        **(best if config.patience else {}),
        **(FSDP if config.count > 1 and config.parallel == "fsdp" else {}),
    }
    defaults = {
        "optim": "adamw_torch_fused",
        "logging_strategy": "steps",
        "logging_steps": 10,
        "report_to": [],
        "disable_tqdm": True,
        "dataloader_pin_memory": torch.cuda.is_available(),
        "prediction_loss_only": True,
        "use_cpu": not torch.cuda.is_available(),
    }
    trackers.require(config.training.get("report_to"))
    if config.patience and not every:
        raise ValueError("patience needs evaluate_every: say how often to look")
    known = get_type_hints(TrainingArguments)
    for name in config.training:
        if name in own:
            raise ValueError(f"training.{name} is set by the run's own keys: leave it out")
        if name not in known:
            raise ValueError(f"unknown key 'training.{name}'{nearest(name, known)}")
    asked = {n: _typed(n, value, known[n]) for n, value in config.training.items()}
    with in_one_line():
        return TrainingArguments(**(own | defaults | asked))


def _typed(name: str, value: Any, hint: Any) -> Any:
    """A value as the number or truth value that its key takes; YAML reads 1e-8 as a text."""
    plain = [kind for kind in (bool, int, float) if kind in (hint, *get_args(hint))]
    if not plain or value is None or str in get_args(hint):
        return value
    try:
        return TypeAdapter(hint).validate_python(value)
    except ValidationError as error:
        reason = error.errors()[0]["msg"].lower()
        raise ValueError(f"training.{name} is {value!r}: {reason}") from None


@contextmanager
def in_one_line() -> Iterator[None]:
    """Turn what transformers raises about its settings into one line."""
    try:
        yield
    except (TypeError, ImportError, RuntimeError, ValueError) as error:
        raise ValueError(" ".join(str(error).split())[:300]) from error


def checkpointing_argument() -> str:
    """What this release of transformers calls activation checkpointing."""
    known = {field.name for field in dataclasses.fields(TrainingArguments)}
    new = "activation_checkpointing"
    return new if new in known else "gradient_checkpointing"
