"""Doing a comparison: each run in a process of its own, its record in a file of its own.

So memory is measured apart, a run that is killed does not end the comparison, and one that was
interrupted goes on where it stopped: a run with a record is not made again.
"""

import json
import multiprocessing
import shutil
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console
from rich.markup import escape

from greentrainer.bench import trial as trials
from greentrainer.bench.spec import PLACES, Spec, Trial, Variant
from greentrainer.bench.summary import Record, summarise, written
from greentrainer.files import write_json, write_text
from greentrainer.provenance import provenance

RECORDS = "runs"
RESULTS = "results.json"


@dataclass(frozen=True)
class Study:
    """A comparison and where it stands.  retry: make failed runs again."""

    spec: Spec
    console: Console
    retry: bool = False
    keep_models: bool = False

    def execute(self) -> dict[str, Any]:
        """Make every run that has no record yet; returns what is in `results.json`.

        Learning rates are tuned with the first seed, then the best one is run with the others, one
        seed after the other for all rows, so that the table is level whenever it is looked at.
        """
        variants = self.spec.variants()
        self._folder.mkdir(parents=True, exist_ok=True)
        for variant in variants:
            for rate in variant.rates or (None,):
                if variant.follows is None:
                    self._make(variant.trial(rate, variant.seeds[0]))
        for place in range(max(len(variant.seeds) for variant in variants)):
            for variant in variants:
                for seed in variant.seeds[place : place + 1]:
                    self._make(variant.trial(self._best(variant, variants), seed))
        return self.results()

    def plan(self) -> Iterator[str]:
        """What would be run, and what is there already."""
        for variant in self.spec.variants():
            rates = ", ".join(f"{rate:g}" for rate in variant.rates) or "-"
            seeds = ", ".join(map(str, variant.seeds))
            done = len(self._records_of(variant))
            chosen = f"as {variant.follows}" if variant.follows else rates
            yield f"{variant.label}: learning rate {chosen}; seeds {seeds}; {done} recorded"

    def results(self) -> dict[str, Any]:
        """All records of this comparison, with the rows of its table."""
        variants = self.spec.variants()
        records = [record for variant in variants for record in self._records_of(variant)]
        rates = {variant.label: self._best(variant, variants) for variant in variants}
        published = [_without_places(record) for record in records]
        result = summarise(self.spec.name, rates, published, self.spec.note)
        self.spec.folder.mkdir(parents=True, exist_ok=True)
        write_text(self.spec.folder / RESULTS, written(result) + "\n")
        return result

    @property
    def _folder(self) -> Path:
        return self.spec.folder / RECORDS

    def _best(self, variant: Variant, variants: Sequence[Variant]) -> float | None:
        """The tried learning rate with the lowest validation loss; the first if none has one."""
        if variant.follows is not None:
            leader = next(one for one in variants if one.label == variant.follows)
            return self._best(leader, variants)
        if len(variant.rates) < 2:
            return variant.rates[0] if variant.rates else None
        tried = [self._record(variant.trial(rate, variant.seeds[0])) for rate in variant.rates]
        judged = [
            (record["validation"]["loss"], rate)
            for rate, record in zip(variant.rates, tried, strict=True)
            if record and "validation" in record
        ]
        return min(judged)[1] if judged else variant.rates[0]

    def _make(self, trial: Trial) -> None:
        """Make one run unless its record is there."""
        record = self._record(trial)
        if record and (record["status"] == "done" or not self.retry):
            return
        self.console.rule(escape(trial.title))
        path = self._folder / trial.file_name
        path.unlink(missing_ok=True)
        work = trial.config.output_dir / trial.key
        trial = Trial(trial.label, trial.config.model_copy(update={"output_dir": work}))
        try:
            _in_own_process(trial, path, self.keep_models)
        finally:
            if not self.keep_models:
                shutil.rmtree(work, ignore_errors=True)
        self._say(path)
        self.results()

    def _say(self, path: Path) -> None:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["status"] == "failed":
            self.console.print(
                f"failed, and recorded: {record['error']}", style="bold red", markup=False
            )
            return
        share = record.get("bill", {}).get("share_of_plain_full", 0.0)
        self.console.print(f"held-out loss {record['test']['loss']:.4f} at {share:.1%} of full")

    def _records_of(self, variant: Variant) -> list[Record]:
        """Those of this row, whatever its learning rate and seed."""
        tried = set(variant.rates) | ({None} if not variant.rates else set())
        if variant.follows:
            tried = {rate for one in self.spec.variants() for rate in one.rates}
        trials = [variant.trial(rate, seed) for rate in tried for seed in variant.seeds]
        found = (self._record(trial) for trial in sorted(trials, key=lambda t: t.file_name))
        return [record for record in found if record is not None]

    def _record(self, trial: Trial) -> Record | None:
        """What was recorded of this run.  Raises ValueError for a file that is no record."""
        path = self._folder / trial.file_name
        if not path.exists():
            return None
        try:
            record: Record = json.loads(path.read_text(encoding="utf-8"))
            assert record["key"] == trial.key
        except (OSError, ValueError, KeyError, TypeError, AssertionError):
            raise ValueError(f"{path} is no record of this run: delete it") from None
        return record


def _without_places(record: Record) -> Record:
    """The record without the folders of the machine it was made on."""
    config = {key: value for key, value in record["config"].items() if key not in PLACES}
    return {key: value for key, value in record.items() if key != "traceback"} | {"config": config}


def _in_own_process(trial: Trial, path: Path, keep_model: bool) -> None:
    """Make the run in a fresh process; one that dies is recorded as failed.

    Raises KeyboardInterrupt, once the run has stopped, if either process was interrupted.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["greentrainer.bench.trial"])
    where = provenance([trial.config.seed])
    process = context.Process(target=partial(_run, trial, where, path, keep_model))
    process.start()
    try:
        process.join()
    except KeyboardInterrupt:
        process.terminate()  # at once: a run without a record is made again from its start
        process.join()
        raise
    if path.exists():
        return
    if process.exitcode in (0, -signal.SIGINT, -signal.SIGTERM, 130):
        raise KeyboardInterrupt
    failure = f"the process ended with exit code {process.exitcode}"
    if process.exitcode == -signal.SIGKILL:
        failure = "the process was killed, perhaps for want of memory"
    config = trial.config.model_dump(mode="json")
    write_json(
        path,
        {
            "label": trial.label,
            "key": trial.key,
            "config": config,
            "provenance": where,
            "status": "failed",
            "error": failure,
        },
    )


def _run(trial: Trial, where: dict[str, Any], path: Path, keep_model: bool) -> None:
    """In the new process."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _leave)
    try:
        trials.run(trial, where, path, keep_model)
    except KeyboardInterrupt:
        sys.exit(130)


def _leave(_number: int, _frame: FrameType | None) -> None:
    """At the first signal; after Ctrl-C a second one comes from the process that waits."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    raise KeyboardInterrupt
