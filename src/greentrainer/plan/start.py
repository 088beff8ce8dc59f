"""A first configuration for a model, its data and this machine: commented, to be changed.

The window holds nearly all examples whole, and batches are as large as the memory plan says that
full fine-tuning of them fits, for what fits full fine-tuning fits any selection.
"""

import json
import math
from dataclasses import dataclass
from typing import Any

import psutil
import torch
from rich.console import Console
from torch import nn

from greentrainer.config import RunConfig
from greentrainer.cost import step_memory, trace
from greentrainer.hf import models, recomputing
from greentrainer.methods import METHODS
from greentrainer.plan.workload import padded_batch
from greentrainer.run import (
    load_task,
    require_budget,
    state_ratio,
    to_learn,
    training_examples,
    weights_of,
    with_template,
)
from greentrainer.select import Blind
from greentrainer.tasks import encode, position_limit, show
from greentrainer.types import Batch, loss_of

LARGEST = 16
"""Rows a batch."""
TOGETHER, STEPS = 16, 30
"""Rows a step at most, and at least so many steps a pass where there are rows for them."""
NEARLY_ALL = 0.95
"""Share of the examples that the window holds whole."""
STEP, LONGEST, LEAST = 64, 4096, 64
"""Windows are multiples, and lie between these, in tokens."""
SCALES = 1.04
"""Of weights in few bits: with the scales beside them."""
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
    much = "" if memory <= free else ", which is too much: try --memory auto, or method lora"
    console.print(
        f"batches of {made.batch_size} x {made.accumulate}{again}: {_what(config)} takes about "
        f"{memory / 1e9:.2g} of {free / 1e9:.2g} GB on {device}{much}",
        markup=False,
    )
    return made


def _what(config: RunConfig) -> str:
    adapters = "adapters" if METHODS[config.method].adapts(config) else "full fine-tuning"
    return adapters if METHODS[config.method].budgeted else f"method {config.method}"


def _window(sizes: tuple[int, ...], most: int) -> int:
    nearly = sorted(sizes)[min(len(sizes) - 1, int(NEARLY_ALL * len(sizes)))]
    return max(min(-(-nearly // STEP) * STEP, most), min(LEAST, most))


def _fitting(config: RunConfig, room: int, together: int) -> tuple[RunConfig, int]:
    """With the largest batches that fit the room, and what they take.

    together: rows a step, or the nearest that whole batches make.
    """
    sizes = [size for size in range(min(together, LARGEST), 0, -1) if together % size == 0]
    for way in _ways(config):
        one, two = (_memory(way, size) for size in (1, 2))
        takes = {size: one + (size - 1) * (two - one) for size in sizes}
        size = next((size for size in sizes if takes[size] <= room), 1)
        made = {"batch_size": size, "accumulate": together // size}
        found = way.model_copy(update=made), takes[size]
        if takes[size] <= room:
            break
    return found


def _ways(config: RunConfig) -> list[RunConfig]:
    """As it is, and with activations recomputed where its method can do with that."""
    method = METHODS[config.method]
    again = config.model_copy(update={"activation_checkpointing": True})
    try:
        require_budget(again, method)
        method.adapt(_sketched(again), again)
    except ValueError:
        return [config]
    return [again] if config == again else [config, again]


def _sketched(config: RunConfig) -> Any:
    network, _ = models.sketch(config.model, revision=config.revision)
    return network.train()


def _memory(config: RunConfig, size: int) -> int:
    """Bytes of a step on batches of the whole window that trains all that the method may train."""
    network, method = _sketched(config), METHODS[config.method]
    network.to(weights_of(config, lambda: 0))
    spared = _spared(network, config.bits) if config.bits else 0
    seq2seq = bool(network.config.is_encoder_decoder)
    batch = padded_batch(config.model_copy(update={"batch_size": size}), seq2seq)
    adapted = method.adapt(network, config)

    def loss(model: nn.Module, given: Batch) -> Any:
        with torch.autocast("cpu", torch.bfloat16, enabled=config.bf16):
            return loss_of(model, given)

    names = [name for name, p in adapted.named_parameters() if p.requires_grad]
    choose = method.selector(adapted, config)
    if isinstance(choose, Blind) and not choose.budgeted and method.interval is None:
        names = list(choose.choose(trace(adapted, batch), math.inf, 0).names)
    with recomputing(adapted, config.activation_checkpointing):
        kind = adapted.get_parameter(names[0]).dtype
        moments = state_ratio(config, kind, torch.device("cpu"))
        return step_memory(adapted, batch, names, loss, moments=moments).total - spared


def _spared(network: Any, bits: int) -> int:
    """Bytes that its products' weights take less in few bits, but for one that is taken back."""
    head = network.get_output_embeddings()
    few = [m.weight for m in network.modules() if isinstance(m, nn.Linear) and m is not head]
    whole = sum(weight.numel() * weight.element_size() for weight in few)
    largest = max(weight.numel() * weight.element_size() for weight in few)
    return whole - round(sum(weight.numel() for weight in few) * bits * SCALES / 8) - largest


def _machine() -> tuple[str, int, bool]:
    """The device, its free bytes, and whether it computes in bfloat16 as fast as it can."""
    if torch.cuda.is_available():
        free, _ = torch.cuda.mem_get_info()
        return torch.cuda.get_device_name(), free, torch.cuda.is_bf16_supported()
    return "this machine's CPU", psutil.virtual_memory().available, False
