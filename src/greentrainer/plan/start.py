"""A first configuration for a model, its data and this machine: commented, to be changed.

The window holds nearly all examples whole, and batches are as large as the memory plan says that
full fine-tuning of them fits, for what fits full fine-tuning fits any selection.
"""

import json
from dataclasses import dataclass

import psutil
import torch
from rich.console import Console

from greentrainer.config import RunConfig
from greentrainer.hf import models, recomputing
from greentrainer.plan.planner import Planner
from greentrainer.run import load_task, to_learn, training_examples, with_template
from greentrainer.tasks import encode, position_limit, show

LARGEST = 16
"""Rows a batch."""
TOGETHER, STEPS = 16, 30
"""Rows a step at most, and at least so many steps a pass where there are rows for them."""
NEARLY_ALL = 0.95
"""Share of the examples that the window holds whole."""
STEP, LONGEST, LEAST = 64, 4096, 64
"""Windows are multiples, and lie between these, in tokens."""
SPARE = 0.8
"""Share of the free memory that is counted on."""
LOOKED_AT = 2000
"""Examples whose length is measured."""
SAMPLE_WINDOW = 2**20


@dataclass(frozen=True)
class Start:
    """What is proposed, and why.  memory: bytes that it takes, of `free`; fits: within `SPARE`."""

    config: RunConfig
    lengths: show.Lengths
    memory: int
    free: int
    fits: bool
    device: str

    def yaml(self) -> str:
        """The file."""
        asked, lengths = self.config, self.lengths
        source = f"task: {json.dumps(asked.task)}"
        if asked.tasks:
            source = "tasks:\n" + "\n".join(
                f"  - {json.dumps(one.model_dump(exclude_none=True))}" for one in asked.tasks
            )
        for name in ("data_dir", "prompt_format", "chat_template", "revision"):
            if name in asked.model_fields_set and getattr(asked, name) is not None:
                source += f"\n{name}: {json.dumps(str(getattr(asked, name)))}"
        held = 1 - sum(length > asked.max_length for length in lengths.whole) / len(lengths.whole)
        fits = f"full fine-tuning takes about {self.memory / 1e9:.1f} of {self.free / 1e9:.1f} GB"
        if asked.activation_checkpointing:
            fits += " so, with activations recomputed"
        if not self.fits:
            fits += ": too much, add `method: lora` and `load_in_4bit: true`, or lower max_length"
        return (
            f"# greentrainer train --config FILE; every key: docs, or greentrainer train --help\n"
            f"model: {json.dumps(asked.model)}\n"
            f"{source}\n"
            f"output_dir: {json.dumps(str(asked.output_dir))}\n\n"
            f"# What may be spent: a share of full fine-tuning's FLOPs; or, in its place,\n"
            f"# hours: 1.5, kwh: 0.2 or co2_grams: 50.  greentrainer plan says what each buys.\n"
            f"rho: {asked.rho:g}\n"
            f"epochs: {asked.epochs}  # passes at most: less where more is not worth its cost\n\n"
            f"# {lengths.line()}\n"
            f"max_length: {asked.max_length}  # tokens; holds {held:.1%} of the examples whole\n"
            f"# {fits} on {self.device}\n"
            f"batch_size: {asked.batch_size}\n"
            f"accumulate: {asked.accumulate}  # batches an optimizer step\n"
            + ("activation_checkpointing: true\n" if asked.activation_checkpointing else "")
            + f"bf16: {str(asked.bf16).lower()}\n\n"
            f"learning_rate: {asked.learning_rate:g}  # try 3e-5 to 3e-4: compare tunes it\n"
            f"# evaluate_every: 50   # steps; with patience: 3 a run ends when nothing is gained\n"
            f"# save_every: 200      # steps; --resume goes on from the last checkpoint\n"
        )


def propose(config: RunConfig, console: Console) -> Start:
    """Propose a window, a batch size and a precision for the configuration's model and data.

    Raises ValueError for a model or data that cannot be read.
    """
    network, tokenizer = models.sketch(config.model, notify=console.print, revision=config.revision)
    if tokenizer is None:
        raise ValueError(f"{config.model} comes with no tokenizer: give a model's folder")
    tokenizer = with_template(tokenizer, config.chat_template)
    examples, _ = training_examples(load_task(config, tokenizer), config)
    seq2seq = bool(network.config.is_encoder_decoder)
    some = to_learn(examples[:LOOKED_AT], tokenizer, config)
    found = [encode.encode(one, tokenizer, SAMPLE_WINDOW, seq2seq) for one in some]
    sizes = tuple(one.length for one in found)
    labelled = tuple(sum(label >= 0 for label in one.labels) for one in found)
    most = min(position_limit(network) or LONGEST, LONGEST)
    window = _window(sizes, most)
    device, free, bf16 = _machine()
    asked = config.model_copy(update={"max_length": window, "bf16": bf16})
    together = min(TOGETHER, max(1, len(examples) // STEPS))
    room = round(SPARE * free)
    made, memory = _fitting(asked, room, together)
    return Start(made, show.Lengths(sizes, labelled, window), memory, free, memory <= room, device)


def fitting(config: RunConfig, console: Console) -> RunConfig:
    """With the largest batches of its window that fit the memory, as many rows a step as asked."""
    device, free, _ = _machine()
    rows = config.batch_size * config.accumulate
    made, memory = _fitting(config, round(SPARE * free), rows)
    again = ", activations recomputed" if made.activation_checkpointing else ""
    console.print(
        f"batches of {made.batch_size} x {made.accumulate}{again}: full fine-tuning takes about "
        f"{memory / 1e9:.1f} of {free / 1e9:.1f} GB on {device}",
        markup=False,
    )
    return made


def _window(sizes: tuple[int, ...], most: int) -> int:
    nearly = sorted(sizes)[min(len(sizes) - 1, int(NEARLY_ALL * len(sizes)))]
    return max(min(-(-nearly // STEP) * STEP, most), min(LEAST, most))


def _fitting(config: RunConfig, room: int, together: int) -> tuple[RunConfig, int]:
    """With the largest batches that fit the room, and what they take.

    together: rows a step, or the nearest that whole batches make.
    """
    sizes = [size for size in range(min(together, LARGEST), 0, -1) if together % size == 0]
    for checkpointed in sorted({config.activation_checkpointing, True}):
        one, two = (_memory(config, size, checkpointed) for size in (1, 2))
        for size in sizes:
            memory = one + (size - 1) * (two - one)
            if memory <= room:
                changes = {"batch_size": size, "activation_checkpointing": checkpointed,
                           "accumulate": together // size}  # fmt: skip
                return config.model_copy(update=changes), memory
    changes = {"batch_size": 1, "activation_checkpointing": True, "accumulate": together}
    return config.model_copy(update=changes), one


def _memory(config: RunConfig, size: int, checkpointed: bool) -> int:
    """Bytes of full fine-tuning on batches of the whole window."""
    planner = Planner(config.model_copy(update={"batch_size": size}), padded=True)
    with recomputing(planner.network, checkpointed):
        return planner.memory(planner.graph.tensors).total


def _machine() -> tuple[str, int, bool]:
    """The device, its free bytes, and whether it computes in bfloat16 as fast as it can."""
    if torch.cuda.is_available():
        free, _ = torch.cuda.mem_get_info()
        return torch.cuda.get_device_name(), free, torch.cuda.is_bf16_supported()
    return "this machine's CPU", psutil.virtual_memory().available, False
