"""Doing a comparison: each run's record in a file of its own.

So one that was interrupted goes on where it stopped: a run with a record is not made again.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from greentrainer.compare import workers as children
from greentrainer.compare.spec import PLACES, Spec, Trial, Variant
from greentrainer.compare.summary import Record, summarise
from greentrainer.records import provenance, working, write_text, written

RECORDS = "runs"
RESULTS = "results.json"


@dataclass(frozen=True)
class Study:
    """A comparison and where it stands.

    retry: make failed runs again.  jobs: how many runs may go on side by side.
    Raises ValueError for less than one.
    """

    spec: Spec
    console: Console
    retry: bool = False
    keep_models: bool = False
    jobs: int = 1

    def __post_init__(self) -> None:
        if self.jobs < 1:
            raise ValueError(f"jobs is {self.jobs}: give 1 or more")

    def execute(self) -> dict[str, Any]:
        """Make every run that has no record yet; returns what is in `results.json`.

        Learning rates are tuned with the first seed, then the best one is run with the others, one
        seed after the other for all rows, so that the table is level whenever it is looked at.
        """
        variants = self.spec.variants()
        self._folder.mkdir(parents=True, exist_ok=True)
        for variant in variants:
            self._records_of(variant)  # one that cannot be read is told before anything runs
        tuning = list(_tuning(variants))
        self._make(tuning)
        made = {trial.key for trial in tuning}
        self._make(trial for trial in self._seeded(variants) if trial.key not in made)
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

    def _seeded(self, variants: Sequence[Variant]) -> Iterator[Trial]:
        """Each row with its best learning rate and all seeds, seed by seed."""
        for place in range(max(len(variant.seeds) for variant in variants)):
            for variant in variants:
                for seed in variant.seeds[place : place + 1]:
                    yield variant.trial(self._best(variant, variants), seed)

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

    def _make(self, trials: Iterable[Trial]) -> None:
        """Make runs unless their records are there, up to `jobs` side by side."""
        runs = (self._begin(trial) for trial in trials if self._is_wanted(trial))
        if self.jobs == 1:
            children.make(runs, 1, self._end)  # each tells how it goes itself
            return
        with working("comparing, runs done:") as work:

            def ended(run: children.Run) -> None:
                self._end(run)
                work.to(work.done + 1)

            children.make(runs, self.jobs, ended)

    def _is_wanted(self, trial: Trial) -> bool:
        record = self._record(trial)
        return record is None or (self.retry and record["status"] != "done")

    def _begin(self, trial: Trial) -> children.Run:
        if self.jobs == 1:
            self.console.rule(escape(trial.title))
        else:
            self._say(trial, "begun")
        path = self._folder / trial.file_name
        path.unlink(missing_ok=True)
        work = trial.config.output_dir / trial.key
        trial = Trial(trial.label, trial.config.model_copy(update={"output_dir": work}))
        where = provenance([trial.config.seed])
        return children.Run(trial, path, where, self.keep_models, self.jobs)

    def _end(self, run: children.Run) -> None:
        record = json.loads(run.path.read_text(encoding="utf-8"))
        if record["status"] == "failed":
            self._say(run.trial, f"failed, and recorded: {record['error']}", style="bold red")
        else:
            share = record.get("bill", {}).get("share_of_plain_full", 0.0)
            loss = record["test"]["loss"]
            self._say(run.trial, f"held-out loss {loss:.4f} at {share:.1%} of full")
        self.results()

    def _say(self, trial: Trial, words: str, style: str | None = None) -> None:
        """What a run has come to; whose it is only where several go on."""
        whose = f"{trial.title}: " if self.jobs > 1 else ""
        self.console.print(f"{whose}{words}", style=style, markup=False)

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


def _tuning(variants: Iterable[Variant]) -> Iterator[Trial]:
    """Each row's learning rates, with its first seed."""
    for variant in variants:
        for rate in variant.rates or (None,):
            if variant.follows is None:
                yield variant.trial(rate, variant.seeds[0])


def _without_places(record: Record) -> Record:
    """The record without the folders of the machine it was made on."""
    config = {key: value for key, value in record["config"].items() if key not in PLACES}
    return {key: value for key, value in record.items() if key != "traceback"} | {"config": config}
