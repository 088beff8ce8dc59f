"""One run, from configuration to folder: load, evaluate, train, evaluate again, save.

The folder holds `config.yaml`, the record that `journal` keeps, `metrics.json`, `predictions.jsonl`
(what the trained model answered), `report.html` and `model/`, an ordinary Hugging Face checkpoint,
written when training ends, also when it is interrupted; and `checkpoints/`, if any were asked for
or the run was interrupted.
"""

import ctypes
import gc
import os
import random
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import Task as RichTask
from rich.table import Column
from rich.text import Text

from greentrainer import energy, tasks
from greentrainer.arguments import CHECKPOINTS, arguments_of, steps_of
from greentrainer.config import RunConfig
from greentrainer.engine import AdaptiveBackprop
from greentrainer.files import write_json, write_lines
from greentrainer.hf import models
from greentrainer.hf.checkpoint import last_whole
from greentrainer.journal import Journal
from greentrainer.meters import PeakMemory
from greentrainer.methods import METHODS
from greentrainer.outcome import Outcome, bill_of
from greentrainer.tasks import encode, metrics, show
from greentrainer.tasks.base import Example, Task
from greentrainer.tasks.encode import Encoded
from greentrainer.tasks.generation import virtual_config
from greentrainer.tasks.positions import require_room
from greentrainer.training import fit, require_budget

DECODINGS = {"greedy": metrics.GREEDY, "paper": metrics.PAPER}
"""How completions are generated, by the configuration's name for it."""


@dataclass(frozen=True)
class Material:
    """A loaded model and the data of a run, tokenised.

    scores: what the task's answers are judged by (names of `base.SCORES`).
    """

    model: Any
    tokenizer: Any
    train: list[Encoded]
    validation: list[Encoded]
    test: list[Encoded]
    test_examples: list[Example]
    scores: tuple[str, ...] = ("rouge",)

    @property
    def seq2seq(self) -> bool:
        """Whether the model has an encoder and a decoder."""
        return bool(self.model.config.is_encoder_decoder)


def prepare(config: RunConfig, console: Console, *, training: bool = True) -> Material:
    """Load model and task, and tokenise the examples; only those held out if not training."""
    model, tokenizer = models.load(config.model, notify=console.print)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    _require_room(config, model)
    task = load_task(config, tokenizer)
    train, validation = training_examples(task, config) if training else ([], [])
    test = _sample(task.examples("test"), config.test_limit, config.data_seed)
    held = f" and {len(validation)} to choose by" if validation else ""
    console.print(f"{task.name}: {len(train)} examples to train on{held}, {len(test)} held out")
    seq2seq = bool(model.config.is_encoder_decoder)
    encoded = [
        encode.encode_all(part, tokenizer, config.max_length, seq2seq)
        for part in (train, validation, test)
    ]
    return Material(model, tokenizer, encoded[0], encoded[1], encoded[2], test, task.scores)


def _require_room(config: RunConfig, model: Any) -> None:
    own = virtual_config(model)
    added = config.virtual_tokens if METHODS[config.method].virtual else 0
    require_room(model, config.max_length, own.num_virtual_tokens if own else added)


def load_task(config: RunConfig, tokenizer: Any) -> Task:
    """The task that a run is on."""
    return tasks.load(
        config.task,
        data_dir=config.data_dir,
        prompt_format=config.prompt_format,
        eos=tokenizer.eos_token,
        prompt=config.prompt_column,
        completion=config.completion_column,
        messages=config.messages_column,
        test_path=config.test_path,
        seed=config.data_seed,
    )


def training_examples(task: Task, config: RunConfig) -> tuple[list[Example], list[Example]]:
    """What is trained on, and what is held back of the training split to choose by.

    Raises ValueError if nothing is left to train on.
    """
    held = config.validation_limit
    examples = task.examples("train")
    whole = len(examples) if held else None  # held back of all of them, in random order
    limit = whole if config.train_limit is None else config.train_limit + held
    given = _sample(examples, limit, config.data_seed)
    if held >= len(given):
        raise ValueError(
            f"validation_limit is {held} and there are {len(given)} examples to train on: lower it"
        )
    return given[: len(given) - held], given[len(given) - held :]


def loss(material: Material, examples: list[Encoded], config: RunConfig) -> float:
    """Loss per completion token."""
    pad = encode.pad_id(material.tokenizer)
    order = encode.batches(examples, config.batch_size)
    padded = (
        encode.collate([examples[i] for i in rows], pad, config.pad_multiple, config.max_length)
        for rows in order
    )
    return metrics.loss_per_token(material.model, padded)


def evaluate(material: Material, config: RunConfig) -> dict[str, Any]:
    """Held-out loss per completion token, and scores of `config.generate` completions."""
    result: dict[str, Any] = {"loss": loss(material, material.test, config)}
    return result | metrics.evaluate_answers(
        material.model,
        material.tokenizer,
        material.test_examples,
        material.scores,
        DECODINGS[config.decoding],
        max_length=config.max_length,
        generated=config.generate,
    )


def execute(config: RunConfig, console: Console, command: str | None = None) -> dict[str, Any]:
    """Do the whole run and write its folder; returns the summary in `metrics.json`.

    command: what was typed, for the record.  Raises ValueError for a method that trains nothing.
    """
    if not METHODS[config.method].trains:
        raise ValueError(f"{config.method} trains nothing: use greentrainer evaluate")
    _require(config)
    _open_folder(config)
    with _recorded(config, command) as journal:
        summary = _execute(config, console, journal)
        journal.end("interrupted" if summary["bill"]["interrupted"] else "done")
    console.print(f"report in {config.output_dir / 'report.html'}", markup=False)
    return summary


def _require(config: RunConfig) -> None:
    """Raise what would be raised later, before anything is loaded."""
    arguments_of(config, examples=1)
    require_budget(config, METHODS[config.method])
    energy.require(config.meter)


@contextmanager
def _recorded(config: RunConfig, command: str | None) -> Iterator[Journal]:
    """A record of the run, drawn however it ends."""
    journal = Journal(config.output_dir, command, config.seed, config.resume)
    try:
        yield journal
    except BaseException as error:
        journal.broke_off(error)
        try:
            draw(config.output_dir)
        except Exception as other:
            error.add_note(f"and its report could not be drawn: {other!r}")
        raise
    draw(config.output_dir)


def draw(folder: Path) -> None:
    """Draw the folder's report."""
    from greentrainer import report  # late: matplotlib's memory is not the training's

    report.draw(folder)


def describe(folder: Path) -> None:
    """Write the card of the folder's model."""
    from greentrainer.report import card  # late, as above

    card.write(folder)


def _execute(config: RunConfig, console: Console, journal: Journal) -> dict[str, Any]:
    material = prepare(config, console)
    journal.note(data={"train": len(material.train), "validation": len(material.validation),
                       "test": len(material.test)})  # fmt: skip
    console.print("evaluating the model as it is")
    summary: dict[str, Any] = {"before": evaluate(material, config)}
    write_json(config.output_dir / "metrics.json", summary)
    outcome, peak = train(config, material, console, journal=journal)
    material = replace(material, model=outcome.model)
    summary["bill"] = bill_of(config, outcome, peak)
    folder = save(config, material, outcome, summary)
    describe(folder)
    if outcome.interrupted:
        console.print(f"interrupted: the model as trained so far is in {folder / 'model'}")
        return summary
    console.print("evaluating the trained model")
    summary["after"] = evaluate(material, config)
    _write_predictions(folder / "predictions.jsonl", material, summary["after"])
    write_json(folder / "metrics.json", summary)
    describe(folder)
    console.print(f"saved to {folder}")
    return summary


def _open_folder(config: RunConfig) -> None:
    """Note the run's configuration in its folder, which must not hold another run's checkpoints."""
    kept = config.output_dir / CHECKPOINTS
    if config.resume:
        config.require_resumable(config.output_dir / "config.yaml")
    elif last_whole(kept) is not None:
        raise ValueError(
            f"{kept} holds checkpoints of an earlier run: add --resume, or choose another "
            "output_dir"
        )
    config.output_dir.mkdir(parents=True, exist_ok=True)
    config.save(config.output_dir / "config.yaml")


def rehearse(config: RunConfig, console: Console) -> None:
    """Print the whole configuration and one tokenised example, labelled tokens marked."""
    console.print(config.yaml(), markup=False)
    _require(config)
    material = prepare(config, console)
    console.print(show.marked(material.train[0], material.tokenizer, material.seq2seq))


def preview(config: RunConfig, split: str, count: int, console: Console) -> None:
    """Print what a task holds: its splits, `count` tokenised examples, and how long they are."""
    model, tokenizer = models.load_tokenizer(config.model, notify=console.print)
    seq2seq = bool(model.is_encoder_decoder)
    task = load_task(config, tokenizer)
    console.print(task.describe(), markup=False)
    examples = task.examples(split)
    for example in _sample(examples, count, config.seed):
        encoded = encode.encode(example, tokenizer, config.max_length, seq2seq)
        console.print(show.marked(encoded, tokenizer, seq2seq), end="\n\n")
    found = show.lengths(examples, tokenizer, config.max_length, seq2seq)
    console.print(f"{split}, {found.line()}", markup=False)
    console.print(show.histogram(found))


def train(
    config: RunConfig,
    material: Material,
    console: Console,
    max_steps: int = -1,
    journal: Journal | None = None,
) -> tuple[Outcome, int]:
    """Train with a progress line; returns the outcome and the peak memory in bytes."""
    release_memory()
    method = METHODS[config.method]
    steps = steps_of(config, len(material.train)) if max_steps < 0 else max_steps
    meter = energy.start_meter(config.meter, config.watts)
    with _progress(console) as progress, PeakMemory() as memory, meter:
        line = progress.add_task("training", total=steps, figures="")

        def report(step: int, loss: float, engine: AdaptiveBackprop) -> None:
            trained = len(engine.selection.names) if engine.selection else 0
            tail = engine.selection.tail if engine.selection else None
            through = "" if tail is None else f"  tail {tail}"
            figures = (
                f"loss {loss:.3f}  rho {engine.ledger.rho_spent:.3f}  "
                f"{trained}/{len(engine.graph.tensors)} tensors{through}"
            )
            planned = engine.pace.total_batches or 0
            shown = -(-planned // config.accumulate) if method.shortened else steps
            progress.update(line, completed=step, total=shown, figures=figures)

        def stopping() -> None:
            console.print("stopping after this step (Ctrl-C again: at once, without saving)")

        start = time.perf_counter(), time.process_time()
        outcome = fit(
            config,
            material.model,
            material.tokenizer,
            material.train,
            material.validation or material.test,
            report=report,
            stopping=stopping,
            max_steps=max_steps,
            meter=meter,
            journal=journal,
        )
        outcome = replace(
            outcome,
            energy=meter.energy(),
            wall_seconds=time.perf_counter() - start[0],
            processor_seconds=time.process_time() - start[1],
        )
    return outcome, memory.peak


def save(config: RunConfig, material: Material, outcome: Outcome, summary: dict[str, Any]) -> Path:
    """Write the run folder; files appear whole or not at all."""
    folder = config.output_dir
    write_lines(folder / "ledger.jsonl", outcome.engine.ledger.state_dict())
    write_lines(folder / "selections.jsonl", outcome.engine.history)
    write_lines(folder / "log.jsonl", outcome.log)
    _save_model(material, folder / "model")
    if (folder / CHECKPOINTS).is_dir() and not any((folder / CHECKPOINTS).iterdir()):
        (folder / CHECKPOINTS).rmdir()
    write_json(folder / "metrics.json", summary)
    return folder


def release_memory() -> None:
    """Give freed memory back to the system, so that peaks can be compared."""
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)


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


def _write_predictions(path: Path, material: Material, result: dict[str, Any]) -> None:
    """What the model answered, beside what it was asked; one object a line."""
    texts = result.get("predictions", [])
    rows = [
        {"prompt": one.prompt + one.cue, "references": list(one.answers), "prediction": text}
        for one, text in zip(material.test_examples, texts, strict=False)  # the first are asked
    ]
    write_lines(path, rows)


def _sample(examples: list[Example], limit: int | None, seed: int) -> list[Example]:
    """A random `limit` of the examples, the same each time."""
    if limit is None:
        return list(examples)
    return random.Random(seed).sample(examples, min(limit, len(examples)))


class _Clock(TimeRemainingColumn):
    """Time left, and when all is done the time it took."""

    def render(self, task: RichTask) -> Text:
        return Text.assemble("in " if task.finished else "left ", super().render(task))


def _progress(console: Console) -> Progress:
    """On a narrow terminal the bar gives way first."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(table_column=Column(no_wrap=True)),
        _Clock(compact=True, elapsed_when_finished=True, table_column=Column(no_wrap=True)),
        TextColumn("{task.fields[figures]}"),
        console=console,
    )
