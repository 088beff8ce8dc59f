"""A run's folder as values.  Nothing is drawn from anything else."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from greentrainer.records import read_lines, read_yaml

Row = Mapping[str, Any]
SECRETS = ("hub_token",)
"""Keys below `training` whose values are not shown."""


@dataclass(frozen=True)
class RunRecord:
    """What the folder of a run holds; what it does not hold (yet) is empty.

    state: `run.json`.  costs: `costs.json`.  metrics: `metrics.json`.
    """

    state: Row
    config: Row
    costs: Row
    metrics: Row
    ledger: Sequence[Row]
    selections: Sequence[Row]
    log: Sequence[Row]
    steps: Sequence[Row]
    predictions: Sequence[Row]

    @property
    def status(self) -> str:
        """Running, done, interrupted or failed."""
        return str(self.state["status"])

    @property
    def tensors(self) -> Sequence[Row]:
        """Of `costs.json`, closest to the loss first; none before the first step."""
        found: Sequence[Row] = self.costs.get("tensors", ())
        return found

    @property
    def steps_made(self) -> int:
        """Optimizer steps that ended."""
        return int(self.steps[-1]["step"]) if self.steps else 0

    @cached_property
    def batches(self) -> int:
        """Training batches entered in the books."""
        return sum(entry["kind"] == "train" for entry in self.ledger)

    def total(self, figure: str, *kinds: str) -> float:
        """Sum of a figure of the books over entries of the given kinds, or of all.

        Books of an older release may lack it.
        """
        return sum(
            float(entry.get(figure, 0))
            for entry in self.ledger
            if not kinds or entry["kind"] in kinds
        )

    def shown(self, text: str) -> str:
        """The text without secrets."""
        training = self.config.get("training") or {}
        for key in SECRETS:
            if training.get(key):
                text = text.replace(str(training[key]), "(hidden)")
        return text

    @property
    def tasks(self) -> list[str]:
        """What it was trained on: one task, or several that were mixed."""
        several = self.config.get("tasks") or ()
        return [str(one["path"]) for one in several] or [str(self.config["task"])]

    @property
    def task(self) -> str:
        """The same, for people."""
        return " + ".join(self.tasks)

    @property
    def weights(self) -> str:
        """What is to be said of the file that the weights came out of, nothing of a whole model."""
        return str((self.state.get("weights") or {}).get("said", ""))

    @property
    def command(self) -> str | None:
        """What was typed."""
        typed = self.state["command"]
        return None if typed is None else self.shown(typed)

    @property
    def config_text(self) -> str:
        """The configuration as YAML."""
        return self.shown(yaml.safe_dump(dict(self.config), sort_keys=False, allow_unicode=True))


def read(folder: Path) -> RunRecord:
    """Read a run's folder.  Raises ValueError, in one line, for a file that cannot be read."""
    try:
        return RunRecord(
            state=_json(folder / "run.json"),
            config=read_yaml((folder / "config.yaml").read_text(encoding="utf-8")),
            costs=_json(folder / "costs.json"),
            metrics=_json(folder / "metrics.json"),
            ledger=read_lines(folder / "ledger.jsonl"),
            selections=read_lines(folder / "selections.jsonl"),
            log=read_lines(folder / "log.jsonl"),
            steps=read_lines(folder / "steps.jsonl"),
            predictions=read_lines(folder / "predictions.jsonl"),
        )
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"{folder} is no whole record of a run: {reason}") from error


def _json(path: Path) -> Row:
    found: Row = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found
