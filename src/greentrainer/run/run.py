"""One run, from configuration to folder: load, evaluate, train, evaluate again, save.

The folder holds `config.yaml`, the record that `journal` keeps, `metrics.json`, `predictions.jsonl`
(what the trained model answered), `report.html` and `model/`, an ordinary Hugging Face checkpoint,
written when training ends, also when it is interrupted; and `checkpoints/`, if any were asked for
or the run was interrupted.
"""

import ctypes
import gc
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from greentrainer.config import RunConfig
from greentrainer.energy import require_meter, start_meter
from greentrainer.hf import last_whole, models, packing_of, whole_state
from greentrainer.methods import METHODS
from greentrainer.model import Alone, PeakMemory, joined
from greentrainer.records import write_json, write_lines
from greentrainer.report import draw, write_card
from greentrainer.run.arguments import CHECKPOINTS, arguments_of, steps_of
from greentrainer.run.asked import collator_of
from greentrainer.run.earlier import kept
from greentrainer.run.evaluation import evaluate, predictions
from greentrainer.run.folder import (
    in_one_line,
    open_folder,
    ran_out,
    require_disk,
    require_folder,
)
from greentrainer.run.inputs import (
    RunInputs,
    encoded,
    load_task,
    sample,
    to_learn,
    with_template,
)
from greentrainer.run.journal import Journal
from greentrainer.run.memory import kept_way, resumed_smaller, weights_of
from greentrainer.run.packing import decided, positions_in
from greentrainer.run.prepared import material
from greentrainer.run.progress import training_line
from greentrainer.run.reference import EpochOrder
from greentrainer.run.result import RunResult, bill_of
from greentrainer.run.together import (
    LAUNCHED,
    REFUSED,
    as_begun,
    failed,
    lost_in_one_line,
    metered,
    own_log,
    placed,
    require_together,
    same_steps,
    tell_launcher,
    together,
)
from greentrainer.run.training import fit, require_budget
from greentrainer.run.unused import require_used, told_of_rho, written
from greentrainer.run.vigil import Vigil
from greentrainer.tasks import encode, require_room, show, virtual_config


def prepare(config: RunConfig, console: Console, *, training: bool = True) -> RunInputs:
    """Load model and task, and tokenise the examples; only those held out if not training."""
    dtype = weights_of(config, lambda: _size(config))
    model, tokenizer = models.load(
        config.model, dtype=dtype, notify=console.print, bits=config.bits, revision=config.revision
    )
    placed(config, model)
    _require_room(config, model)
    tokenizer = with_template(tokenizer, config.chat_template)
    seq2seq = bool(model.config.is_encoder_decoder)
    if not training:
        task = load_task(config, tokenizer)
        test = sample(task.examples("test"), config.test_limit, config.data_seed)
        console.print(f"{task.name}: 0 examples to train on, {len(test)} held out")
        told = encoded(test, tokenizer, config, seq2seq)
        return RunInputs(model, tokenizer, [], [], told, test, task.scores)
    made = material(config, tokenizer, seq2seq)
    train, validation, held = (made.counts[name] for name in ("train", "validation", "test"))
    chosen = f" and {validation} to choose by" if validation else ""
    console.print(f"{made.name}: {train} examples to train on{chosen}, {held} held out")
    rows = made.rows
    return RunInputs(
        model, tokenizer, rows["train"], rows["validation"], rows["test"], made.asked, made.scores
    )


def _size(config: RunConfig) -> int:
    """Values of the model."""
    network, _ = models.sketch(config.model, revision=config.revision)
    return sum(parameter.numel() for parameter in network.parameters())


def _require_room(config: RunConfig, model: Any) -> None:
    own = virtual_config(model)
    added = config.virtual_tokens if METHODS[config.method].virtual else 0
    require_room(model, config.max_length, own.num_virtual_tokens if own else added)


def execute(config: RunConfig, console: Console, command: str | None = None) -> dict[str, Any]:
    """Do the whole run and write its folder; returns the summary in `metrics.json`.

    command: what was typed, for the record.  Raises ValueError for a method that trains nothing.
    """
    if not METHODS[config.method].trains:
        raise ValueError(f"{config.method} trains nothing: use greentrainer evaluate")
    _require(config)
    processes = joined()
    told = partial(console.print, markup=False)
    config = together(config, processes)
    note = told_of_rho(config)
    if note and processes.rank == 0:
        told(note)
    with processes.agreed(), in_one_line(config):
        require_folder(config)
        typed, config = as_begun(config), same_steps(config)
    with ExitStack() as holding:
        let_go: Callable[[], None] = lambda: None  # noqa: E731
        with processes.agreed(), in_one_line(config):
            if processes.rank == 0:
                let_go = holding.enter_context(kept(typed, told))
                open_folder(typed)
        own_log(config.output_dir, processes.rank)
        limit = arguments_of(config, examples=1).ddp_timeout
        with Vigil(processes, limit, partial(_end, config.output_dir)), in_one_line(config):
            attempt = partial(
                _from_the_folder_on,
                console=console, command=command, let_go=let_go, processes=processes,
            )  # fmt: skip
            summary = _made(config, attempt, told, processes.count == 1)
            processes.leave()  # none before all is written
    return summary


def _made(
    config: RunConfig,
    attempt: Callable[[RunConfig], dict[str, Any]],
    told: Callable[[str], None],
    alone: bool,
) -> dict[str, Any]:
    """The run; once more, with fewer rows at a time, where it runs out of memory `alone`."""
    try:
        return attempt(config)
    except Exception as error:
        again = resumed_smaller(config) if alone and ran_out(error) else None
        if again is None:
            raise
    told(_said(again))  # the error, and all that it held, is gone
    release_memory()
    return attempt(again)


def _from_the_folder_on(
    config: RunConfig,
    console: Console,
    command: str | None,
    let_go: Callable[[], None],
    processes: Alone,
) -> dict[str, Any]:
    """What is done when there is a folder to record it in."""
    with _recorded(config, command, let_go, processes) as journal, lost_in_one_line():
        with processes.agreed(), in_one_line(config):
            inputs = prepare(config, console)
            config = placed(config, inputs.model)
            require_disk(config, inputs.model)
        summary = _execute(config, inputs, console, journal)
        journal.end("interrupted" if summary["bill"]["interrupted"] else "done")
    console.print(f"report in {config.output_dir / 'report.html'}", markup=False)
    return summary


def _said(config: RunConfig) -> str:
    """How a run that ran out of memory goes on."""
    way = kept_way(config)
    assert way is not None
    whole = last_whole(config.output_dir / CHECKPOINTS)
    where = f"from {whole}" if whole else "from the beginning"
    return (
        f"out of memory: going on {where}, with {way.rows} rows of a batch of {config.batch_size} "
        "at a time"
    )


def _end(folder: Path, reason: str) -> None:
    """Of a process that waits in vain for another: nothing but its end helps."""
    failed(folder, reason)
    tell_launcher(reason)
    if LAUNCHED not in os.environ:
        print(f"error: {reason}", file=sys.stderr, flush=True)
    os._exit(REFUSED)


def _require(config: RunConfig) -> None:
    """Raise what would be raised later, before anything is loaded."""
    require_together(config)
    if arguments_of(config, examples=1).n_gpu > 1:
        raise ValueError(
            "one process trains on one GPU: add --processes auto for all of them, or show it one, "
            "as with CUDA_VISIBLE_DEVICES=0"
        )
    require_budget(config, METHODS[config.method])
    require_used(config)
    require_meter(config.meter)
    if config.bits and not METHODS[config.method].adapts(config):
        raise ValueError(
            f"a base in {config.bits} bits trains adapters alone: use method lora, or add "
            "--lora-rank 8"
        )


@contextmanager
def _recorded(
    config: RunConfig, command: str | None, stepped: Callable[[], None], processes: Alone
) -> Iterator[Journal]:
    """A record of the run, drawn however it ends."""
    journal = Journal(config.output_dir, command, config.seed, config.resume, processes, stepped)
    try:
        yield journal
    except BaseException as error:
        journal.broke_off(error)
        try:
            if journal.writes:
                draw(config.output_dir)
        except Exception as other:
            error.add_note(f"and its report could not be drawn: {other!r}")
        raise
    if journal.writes:
        draw(config.output_dir)


def _execute(
    config: RunConfig, inputs: RunInputs, console: Console, journal: Journal
) -> dict[str, Any]:
    journal.note(data={"train": len(inputs.train), "validation": len(inputs.validation),
                       "test": len(inputs.test)})  # fmt: skip
    if packing := packing_of(inputs.model):
        journal.note(weights={"said": str(packing), "license": packing.license})
    console.print("evaluating the model as it is")
    summary: dict[str, Any] = {"before": evaluate(inputs, config)}
    folder = config.output_dir
    if journal.writes:
        write_json(folder / "metrics.json", summary)
    outcome, peak = train(config, inputs, console, journal=journal)
    inputs = replace(inputs, model=outcome.model)
    summary["bill"] = bill_of(config, outcome, peak)
    state = whole_state(inputs.model)
    if journal.writes:
        save(config, inputs, outcome, summary, journal.choices, state)
        write_card(folder)
    if outcome.interrupted:
        console.print(f"interrupted: the model as trained so far is in {folder / 'model'}")
        return summary
    console.print("evaluating the trained model")
    summary["after"] = evaluate(inputs, config)
    if journal.writes:
        write_lines(folder / "predictions.jsonl", predictions(inputs, summary["after"]))
        write_json(folder / "metrics.json", summary)
        write_card(folder)
    console.print(f"saved to {folder}")
    return summary


def rehearse(config: RunConfig, console: Console) -> None:
    """Print the whole configuration and one tokenised example, labelled tokens marked."""
    console.print(written(config), markup=False)
    _require(config)
    inputs = prepare(config, console)
    console.print(show.marked(inputs.train[0], inputs.tokenizer, inputs.seq2seq))
    console.print(_outlook(config, inputs), markup=False)


def _outlook(config: RunConfig, inputs: RunInputs) -> str:
    """How many steps would be made, of how many tokens, how much is padding, and with packing."""
    collate = collator_of(config, inputs.tokenizer)
    real = places = 0
    for rows in EpochOrder(inputs.train, config.batch_size, config.seed).groups():
        mask = collate([inputs.train[i] for i in rows])["attention_mask"]
        real, places = real + int(mask.sum()), places + mask.numel()
    steps = steps_of(config, len(inputs.train))
    parts = [config.batch_size, config.accumulate, config.count]
    made = "of " + " x ".join(str(part) for part in parts if part == parts[0] or part > 1)
    found = positions_in(config, inputs.train, collate)
    told = decided(config, inputs.model, inputs.train, collate).says
    return (
        f"{steps:,} steps {made} in {config.epochs} passes over {len(inputs.train):,} examples: "
        f"{real:,} tokens a pass, and {1 - real / places:.1%} of the positions are padding"
        + ("" if inputs.seq2seq else f" ({1 - found.tokens / found.packed:.1%} packed)")
        + f"\n{told}"
    )


def preview(config: RunConfig, split: str, count: int, console: Console) -> None:
    """Print what a task holds: its splits, `count` tokenised examples, and how long they are."""
    model, tokenizer = models.load_tokenizer(
        config.model, notify=console.print, revision=config.revision
    )
    tokenizer = with_template(tokenizer, config.chat_template)
    seq2seq = bool(model.is_encoder_decoder)
    task = load_task(config, tokenizer)
    rows = task.examples(split)
    console.print(task.describe(), markup=False)
    if not rows:
        raise ValueError(f"{task.name} has no {split} examples")
    examples = to_learn(rows, tokenizer, config)
    if len(examples) > len(rows):
        console.print(
            "the chat template shows earlier turns otherwise than the assistant has to write them: "
            f"{len(rows):,} rows become {len(examples):,} examples, each turn in its own context "
            "(--set turns=last: the last turn alone)"
        )
    for example in sample(examples, count, config.seed):
        one = encode.encode(example, tokenizer, config.max_length, seq2seq)
        console.print(show.marked(one, tokenizer, seq2seq), end="\n\n")
    found = show.lengths(examples, tokenizer, config.max_length, seq2seq)
    console.print(f"{split}, {found.line()}", markup=False)
    console.print(show.histogram(found))


def train(
    config: RunConfig,
    inputs: RunInputs,
    console: Console,
    max_steps: int = -1,
    journal: Journal | None = None,
) -> tuple[RunResult, int]:
    """Train with a progress line; returns the outcome and the peak memory in bytes."""
    release_memory()
    steps = steps_of(config, len(inputs.train)) if max_steps < 0 else max_steps
    processes = joined()
    meter = start_meter(*metered(config))

    def stopping() -> None:
        console.print("stopping after this step (Ctrl-C again: at once, without saving)")

    with training_line(config, steps) as report, PeakMemory() as memory, meter:
        start = time.perf_counter(), time.process_time()
        outcome = fit(
            config,
            inputs.model,
            inputs.tokenizer,
            inputs.train,
            inputs.validation or inputs.test,
            report=report,
            stopping=stopping,
            max_steps=max_steps,
            meter=meter,
            journal=journal,
            told=partial(console.print, markup=False),
        )
        outcome = replace(
            outcome,
            energy=meter.energy(),
            wall_seconds=time.perf_counter() - start[0],
            processor_seconds=sum(processes.every(time.process_time() - start[1])),
        )
    return outcome, max(processes.every(memory.peak))


def save(
    config: RunConfig,
    inputs: RunInputs,
    outcome: RunResult,
    summary: dict[str, Any],
    choices: Sequence[dict[str, Any]] | None = None,
    state: dict[str, Any] | None = None,
) -> Path:
    """Write the run folder; files appear whole or not at all.

    choices: what was chosen when; as the engine has it when None.
    state: the model's tensors, where it holds only a part of each.
    """
    folder = config.output_dir
    write_lines(folder / "ledger.jsonl", outcome.ledger.state_dict())
    write_lines(folder / "selections.jsonl", choices or outcome.engine.history)
    write_lines(folder / "log.jsonl", outcome.log)
    _save_model(inputs, folder / "model", state)
    if (folder / CHECKPOINTS).is_dir() and not any((folder / CHECKPOINTS).iterdir()):
        (folder / CHECKPOINTS).rmdir()
    write_json(folder / "metrics.json", summary)
    return folder


def release_memory() -> None:
    """Give freed memory back to the system, so that peaks can be compared."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)


def _save_model(inputs: RunInputs, folder: Path, state: dict[str, Any] | None) -> None:
    """An ordinary checkpoint, which replaces an older one only when it is whole."""
    part, old = folder.with_name("model.part"), folder.with_name("model.old")
    for left in (part, old):
        shutil.rmtree(left, ignore_errors=True)
    inputs.model.save_pretrained(part, state_dict=state)
    inputs.tokenizer.save_pretrained(part)
    if folder.exists():
        os.replace(folder, old)
    os.replace(part, folder)
    shutil.rmtree(old, ignore_errors=True)
