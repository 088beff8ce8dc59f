"""How few FLOPs and seconds fine-tuning can take: `python benchmarks floor --data-dir FOLDER`.

Runs `benchmarks/quality/floor.yaml`, a process for each run, and some steps of the plain Trainer of
transformers on the same batches, to see that method full is what people have today.  What has a
record in `runs/floor` is not made again; with `--draw` nothing is run.

Seconds of a row are all that its training took: steps, probes, selections and tracing.
"""

import argparse
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from rich.console import Console
from shared.results import check, write

from greentrainer.compare import Study, read
from greentrainer.compare.spec import Spec
from greentrainer.compare.summary import charged_seconds
from greentrainer.config import RunConfig
from greentrainer.records import write_json
from greentrainer.report.tables import lines

Row = dict[str, Any]

HERE = Path(__file__).parent
FULL = "full, labelled_head False"
WITHOUT = "green, rho {:g}"
WITH = "green, head and kept, rho {:g}"
STEPS = 10


def beside_the_plain_trainer(config: RunConfig, path: Path) -> None:
    """Write losses and seconds of the same steps by `transformers.Trainer` and by method full.

    A step's seconds are those from one step's end to the next one's.
    """
    from torch.utils.data import Sampler
    from transformers import Trainer, TrainerCallback

    from greentrainer.run import EpochOrder
    from greentrainer.run import run as runs
    from greentrainer.run.arguments import arguments_of
    from greentrainer.run.training import Rows, fit
    from greentrainer.tasks import encode

    console = Console()
    inputs = runs.prepare(config, console)
    clock: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            clock.append(time.perf_counter())

    class InOrder(Trainer):
        def _get_train_sampler(self, *_: Any, **__: Any) -> Sampler[int]:
            return EpochOrder(inputs.train, config.batch_size, config.seed)

    pad = encode.pad_id(inputs.tokenizer)
    logged = config.model_copy(update={"training": {"logging_steps": 1}})
    trainer = InOrder(
        inputs.model,
        arguments_of(logged, len(inputs.train), STEPS),
        data_collator=Rows(encode.Collator(pad, config.pad_multiple, config.max_length)),
        train_dataset=list(inputs.train),
        callbacks=[Clock()],
    )
    trainer.train()
    plain = {
        "seconds": [round(end - start, 4) for start, end in pairwise(clock)],
        "losses": [line["loss"] for line in trainer.state.log_history if "loss" in line],
    }
    del trainer
    inputs = runs.prepare(config, console)
    clock.clear()
    outcome = fit(
        config,
        inputs.model,
        inputs.tokenizer,
        inputs.train,
        inputs.test,
        report=lambda *_: clock.append(time.perf_counter()),
        max_steps=STEPS,
    )
    ours = {
        "seconds": [round(end - start, 4) for start, end in pairwise(clock)],
        "losses": list(outcome.losses),
    }
    write_json(path, {"plain": plain, "full": ours})


def in_own_process(work: Callable[[], None]) -> None:
    """Do it in a fresh process, as the runs of a comparison are."""
    process = multiprocessing.get_context("spawn").Process(target=work)
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"it ended with exit code {process.exitcode}")


def plain_row(spec: Spec, results: Mapping[str, Any], run: bool) -> Row:
    """Method full beside the plain Trainer on the same steps; empty where it has not been run."""
    path = spec.folder / "plain_trainer.json"
    full = chosen(results, FULL)
    if full is None:
        return {}
    if run and not path.exists():
        variant = next(one for one in spec.variants() if one.label == FULL)
        trial = variant.trial(full["config"]["learning_rate"], full["config"]["seed"])
        in_own_process(partial(beside_the_plain_trainer, trial.config, path))
    if not path.exists():
        return {}
    found = json.loads(path.read_text(encoding="utf-8"))
    plain, ours = found["plain"], found["full"]
    pairs = list(zip(plain["losses"], ours["losses"], strict=True))
    return {
        "steps": len(pairs),
        "transformers.Trainer: step, median seconds": statistics.median(plain["seconds"]),
        "method full: step, median seconds": statistics.median(ours["seconds"]),
        "method full / transformers.Trainer": statistics.median(ours["seconds"])
        / statistics.median(plain["seconds"]),
        "largest difference of losses": max(abs(a - b) for a, b in pairs),
    }


def chosen(results: Mapping[str, Any], label: str) -> Row | None:
    """The record of a row at its learning rate."""
    rates = {row["label"]: row.get("learning_rate") for row in results["rows"]}
    found: list[Row] = [
        record
        for record in results["records"]
        if record["label"] == label
        and record["status"] == "done"
        and record["config"]["learning_rate"] == rates[label]
    ]
    return found[0] if found else None


def rows_of(results: Mapping[str, Any]) -> list[Row]:
    """The rows of the comparison, each with the median of its steps and what it skipped."""
    rows = []
    for row in results["rows"]:
        record = chosen(results, row["label"])
        if record is None:
            rows.append(dict(row))
            continue
        bill = record["bill"]
        seconds = statistics.median(record["batch_seconds"])
        more = {
            "step, median seconds": seconds,
            "spent seconds": charged_seconds(bill, bill["method"] == "green"),
            "skipped flops / full": bill["skipped_flops"] / bill["plain_full_flops"],
        }
        rows.append(row | more)
    first = next((row for row in rows if row["label"] == FULL), {})
    for row in rows:
        if "step, median seconds" in row and "step, median seconds" in first:
            row["median step / full"] = row["step, median seconds"] / first["step, median seconds"]
    return [one_sitting(row, results) for row in rows]


def one_sitting(row: Row, results: Mapping[str, Any]) -> Row:
    """The row without its shares of seconds where it was not made along with full fine-tuning."""
    own, full = chosen(results, row["label"]), chosen(results, FULL)
    if own and full and own["provenance"]["commit"] == full["provenance"]["commit"]:
        return row
    return {k: v for k, v in row.items() if k not in ("seconds / full", "median step / full")}


def checks(rows: list[Row], plain: Row) -> list[Row]:
    """The promises: seconds follow FLOPs, memory, and the curve with both below the one without."""
    by = {row["label"]: row for row in rows if "loss" in row}
    found = []
    for row in by.values():
        if row["method"] == "green":
            told = f"{row['label']}: "
            found.append(check(told + "share of full's FLOPs", row["flops / full"], row["rho"]))
            if "seconds / full" in row:
                name = told + "seconds / (rho x full's)"
                found.append(check(name, row["seconds / full"] / row["rho"], 1.1))
    pairs = [(0.5, 0.5), (0.3, 0.5)]
    for ours, theirs in pairs:
        with_, without = WITH.format(ours), WITHOUT.format(theirs)
        if with_ in by and without in by:
            name = f"loss of {with_!r} less that of {without!r}"
            found.append(check(name, by[with_]["loss"] - by[without]["loss"], 0.0))
    half = WITHOUT.format(0.5)
    if "memory / full" in by.get(half, {}):
        found.append(check(f"{half}: peak memory / full's", by[half]["memory / full"], 0.55))
    if plain:
        name = "median step of method full / of transformers.Trainer"
        found.append(check(name, plain["method full / transformers.Trainer"], 1.05))
        name = "largest difference between losses of the two"
        found.append(check(name, plain["largest difference of losses"], 1e-3))
    unrun = [row for row in rows if "loss" not in row and "failures" not in row]
    return [*found, check("rows not run yet", len(unrun), 0)]


def main() -> None:
    """Run or draw, and write the figures down."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--draw", action="store_true")
    parser.add_argument("--data-dir", help="the data set's files; the hub's without it")
    asked = parser.parse_args()
    where = {"data_dir": asked.data_dir} if asked.data_dir else {}
    spec = read(HERE / "floor.yaml", {"run": where})
    study = Study(spec, Console())
    results = study.results() if asked.draw else study.execute()
    plain = plain_row(spec, results, run=not asked.draw)
    rows = rows_of(results)
    kept = {k: v for k, v in results.items() if k not in ("name", "note", "rows")}
    held = checks(rows, plain)
    write("floor", rows, held, spec.seeds, spec.note.strip(), table(rows), plain=plain, **kept)


def table(rows: list[Row]) -> Any:
    """For the terminal."""
    from rich.table import Table

    head, body = lines(rows)
    shown = Table(*head)
    for line in body:
        shown.add_row(*line)
    return shown
