"""One run, from configuration to folder: load, evaluate, train, evaluate again, save.

The folder holds `config.yaml`, `ledger.jsonl`, `selections.jsonl`, `metrics.json` and `model/`, an
ordinary Hugging Face checkpoint.  It is written when training ends, also when it is interrupted.
"""

import ctypes
import gc
import json
import os
import random
import shutil
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from greentrainer import tasks
from greentrainer.config import RunConfig
from greentrainer.engine import AdaptiveBackprop
from greentrainer.hf import models
from greentrainer.meters import PeakMemory
from greentrainer.tasks import encode, metrics
from greentrainer.tasks.base import Example
from greentrainer.training import Outcome, Plan, fit
from greentrainer.types import Batch

ANSWER_TOKENS = 48
"""Length of generated completions."""


@dataclass(frozen=True)
class Material:
    """A loaded model and the data of a run."""

    model: Any
    tokenizer: Any
    test: list[Example]
    test_batches: list[Batch]
    epochs: list[list[Batch]]

    @property
    def train_batches(self) -> int:
        """Batches of all epochs."""
        return sum(len(epoch) for epoch in self.epochs)


def prepare(config: RunConfig, console: Console, *, training: bool = True) -> Material:
    """Load model and task, and cut the examples into batches; held-out ones only if not training."""
    model, tokenizer = models.load(config.model, notify=console.print)
    task = tasks.load(config.task, seed=config.seed)
    train = _sample(task.examples("train"), config.train_limit, config.seed) if training else []
    test = _sample(task.examples("test"), config.test_limit, config.seed)
    seq2seq = bool(model.config.is_encoder_decoder)

    def batches(examples: Sequence[Example], epoch: int) -> list[Batch]:
        encoded = [
            encode.encode(example, tokenizer, config.max_length, seq2seq, row=i)
            for i, example in enumerate(examples)
        ]
        lengths = [len(item.input_ids) for item in encoded]
        plan = encode.plan_batches(lengths, config.batch_size, config.seed, epoch)
        pad = int(tokenizer.pad_token_id)
        return [encode.collate([encoded[i] for i in rows], pad) for rows in plan]

    epochs = [batches(train, epoch) for epoch in range(config.epochs)]
    console.print(
        f"{task.name}: {len(train)} examples to train on, {len(test)} held out, "
        f"{sum(map(len, epochs))} batches of {config.batch_size}"
    )
    return Material(model, tokenizer, test, batches(test, 0), epochs)


def plan_of(config: RunConfig, material: Material) -> Plan:
    """The training plan that a configuration asks for."""
    return Plan(
        epochs=material.epochs,
        rho=config.rho if config.method == "green" else 1.0,
        learning_rate=config.learning_rate,
        probe_batches=config.probe_batches,
        selections=config.selections,
        seed=config.seed,
    )


def evaluate(material: Material, generate: int) -> dict[str, Any]:
    """Held-out loss per completion token, and ROUGE of `generate` generated completions (x100)."""
    model, tokenizer = material.model, material.tokenizer
    result: dict[str, Any] = {"loss": metrics.loss_per_token(model, material.test_batches)}
    asked = material.test[:generate]
    if asked:
        prompts = [example.prompt + example.cue for example in asked]
        texts = metrics.generate(model, tokenizer, prompts, ANSWER_TOKENS, batch_size=8)
        texts = [text.strip().split("\n")[0] for text in texts]
        result |= metrics.rouge(texts, [example.completion for example in asked])
        result["predictions"] = texts
    return result


def execute(config: RunConfig, console: Console) -> dict[str, Any]:
    """Do the whole run and write its folder; returns the summary in `metrics.json`."""
    material = prepare(config, console)
    console.print("evaluating the model as it is")
    summary: dict[str, Any] = {"before": evaluate(material, config.generate)}
    outcome, engine, peak = train(material, plan_of(config, material), console)
    summary["bill"] = bill(config, outcome, engine, peak)
    folder = save(config, material, engine, summary)
    if outcome.interrupted:
        console.print(f"interrupted: the model as trained so far is in {folder / 'model'}")
        return summary
    console.print("evaluating the trained model")
    summary["after"] = evaluate(material, config.generate)
    write_json(folder / "metrics.json", summary)
    console.print(f"saved to {folder}")
    return summary


def train(
    material: Material, plan: Plan, console: Console
) -> tuple[Outcome, AdaptiveBackprop, int]:
    """Train with a progress line; returns the outcome, the engine and the peak memory in bytes."""
    release_memory()
    with _progress(console) as progress, PeakMemory() as memory:
        line = progress.add_task("training", total=plan.total_batches, figures="")

        def report(_batch: int, loss: float, engine: AdaptiveBackprop) -> None:
            trained = len(engine.selection.names) if engine.selection else 0
            figures = (
                f"loss {loss:.3f}  rho {engine.ledger.rho_spent:.3f}  "
                f"training {trained}/{len(engine.graph.tensors)} tensors"
            )
            progress.update(line, advance=1, figures=figures)

        outcome, engine = fit(material.model, plan, report)
    return outcome, engine, memory.peak


def save(
    config: RunConfig, material: Material, engine: AdaptiveBackprop, summary: dict[str, Any]
) -> Path:
    """Write the run folder; files appear whole or not at all."""
    folder = config.output_dir
    folder.mkdir(parents=True, exist_ok=True)
    config.save(folder / "config.yaml")
    engine.ledger.write(folder / "ledger.jsonl")
    _write_lines(folder / "selections.jsonl", engine.history)
    _save_model(material, folder / "model")
    write_json(folder / "metrics.json", summary)
    return folder


def bill(
    config: RunConfig, outcome: Outcome, engine: AdaptiveBackprop, peak_bytes: int
) -> dict[str, Any]:
    """What was trained and what it cost."""
    chosen = engine.selection
    return {
        "method": config.method,
        "rho": config.rho if config.method == "green" else 1.0,
        "interrupted": outcome.interrupted,
        "final_training_loss": outcome.losses[-1] if outcome.losses else None,
        "tensors": len(engine.graph.tensors),
        "tensors_trained_last": len(chosen.names) if chosen else None,
        "seconds_per_batch": batch_seconds(engine),
        "peak_memory_bytes": peak_bytes,
        **engine.ledger.summary(),
    }


def batch_seconds(engine: AdaptiveBackprop) -> float | None:
    """Median seconds of a training batch, the first left out where there are more."""
    seconds = [entry.seconds for entry in engine.ledger if entry.kind == "train"]
    return statistics.median(seconds[1:] or seconds) if seconds else None


def release_memory() -> None:
    """Give freed memory back to the system, so that peaks can be compared."""
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file in one step."""
    part = path.with_name(f"{path.name}.part")
    part.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    os.replace(part, path)


def _save_model(material: Material, folder: Path) -> None:
    """An ordinary checkpoint, which replaces an older one only when it is whole."""
    part, old = folder.with_name("model.part"), folder.with_name("model.old")
    for left in (part, old):
        shutil.rmtree(left, ignore_errors=True)
    material.model.save_pretrained(part)
    material.tokenizer.save_pretrained(part)
    if folder.exists():
        os.replace(folder, old)
    os.replace(part, folder)
    shutil.rmtree(old, ignore_errors=True)


def _write_lines(path: Path, rows: Sequence[Any]) -> None:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")


def _sample(examples: list[Example], limit: int | None, seed: int) -> list[Example]:
    """A random `limit` of the examples, the same each time."""
    if limit is None or limit >= len(examples):
        return list(examples)
    return random.Random(seed).sample(examples, limit)


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[figures]}"),
        console=console,
    )
