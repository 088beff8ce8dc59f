"""The record of a run in its folder, true at any moment: also after `kill -9`.

`run.json` says how the run stands, `costs.json` what each tensor costs; `ledger.jsonl`,
`selections.jsonl`, `log.jsonl` and `steps.jsonl` grow with every optimizer step.  A step's entries
are final once it has ended, and are written then.  Where several processes train, the first writes
the entries of all, and numbers of batches are those of all together.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from greentrainer.engine import AdaptiveBackprop
from greentrainer.hf import layout
from greentrainer.model import Alone
from greentrainer.records import Entry, Growing, Ledger, provenance, read_lines, write_json

RECORD = "run.json"
"""What every run writes first."""
FORMAT = 1
"""Version of the record."""
Status = Literal["running", "done", "interrupted", "failed"]
GROWING = ("ledger.jsonl", "selections.jsonl", "log.jsonl", "steps.jsonl")
ENDING = ("costs.json", "metrics.json", "predictions.jsonl", "report.html")
"""Files that say how an earlier run in the folder ended."""


class Journal:
    """Keeps the record of a run from its start, or from where it was resumed.

    command: what was typed, None if the run was started otherwise.
    resumes: whether the run may go on from a checkpoint in the folder.
    processes: that train together: each keeps a journal, and the first one's is written.
    ledger: the entries of all processes.
    stepped: called when a step has been made and written down.
    """

    def __init__(
        self,
        folder: Path,
        command: str | None,
        seed: int,
        resumes: bool,
        processes: Alone | None = None,
        stepped: Callable[[], None] = lambda: None,
    ) -> None:
        self.folder, self.processes, self.stepped = folder, processes or Alone(), stepped
        self.writes = self.processes.rank == 0
        self.engine: AdaptiveBackprop | None = None
        self.ledger = Ledger()
        self._entered = 0
        self._files = {name: Growing(folder / name) for name in GROWING} if self.writes else {}
        if self.writes:
            for name in ENDING if resumes else (*ENDING, *GROWING):
                (folder / name).unlink(missing_ok=True)
        self._state: dict[str, Any] = {
            "format": FORMAT,
            "status": "running",
            "error": None,
            "command": command,
            "started": _now(),
            "ended": None,
            "resumed_at_step": None,
            "steps": 0,
            "planned_steps": None,
            "processes": self.processes.count,
            "provenance": provenance([seed]),
        }
        self.note()

    def note(self, **facts: Any) -> None:
        """Add facts to `run.json`."""
        self._state |= {**facts, "updated": _now()}
        if self.writes:
            write_json(self.folder / RECORD, self._state)

    def begin(
        self, engine: AdaptiveBackprop, planned: int, made: int, log: Sequence[Mapping[str, Any]]
    ) -> None:
        """Training begins: `planned` optimizer steps, of which `made` were made before.

        log: the Trainer's, of earlier steps too.
        """
        self.engine = engine
        if self.writes:
            write_json(self.folder / "costs.json", costs(engine))
            known = read_lines(self.folder / "steps.jsonl")
            self._files["steps.jsonl"].add([row for row in known if row["step"] <= made])
        self.log(log)
        self._grow(engine)
        self.note(planned_steps=planned, steps=made, resumed_at_step=made or None)

    def step(self, step: int, loss: float) -> None:
        """An optimizer step has ended."""
        assert self.engine is not None
        self._grow(self.engine)
        ledger = self.ledger
        row = {
            "step": step,
            "loss": loss,
            "batches": ledger.batches,
            "spent_flops": ledger.spent_flops,
            "full_flops": ledger.full_flops,
            "at": _now(),
        }
        if self.writes:
            self._files["steps.jsonl"].add([row])
        self.note(steps=step)
        self.stepped()

    def log(self, log: Sequence[Mapping[str, Any]]) -> None:
        """Something was added to the Trainer's log."""
        if self.writes:
            lines = self._files["log.jsonl"]
            lines.add(log[lines.rows :])

    def end(self, status: Status, error: str | None = None) -> None:
        """The run is over.  error: why, in one line."""
        if self.engine is not None:
            self._grow(self.engine)
        self.note(status=status, error=error, ended=_now())

    def broke_off(self, error: BaseException) -> None:
        """The run is over by an exception; other processes may not answer any more."""
        text = " ".join(str(error).split())[:500] or type(error).__name__
        stopped = isinstance(error, KeyboardInterrupt)
        if self.engine is not None and self.processes.count == 1:
            self._grow(self.engine)
        self.note(
            status="interrupted" if stopped else "failed",
            error="stopped at once, without saving" if stopped else text,
            ended=_now(),
        )

    @property
    def choices(self) -> list[dict[str, Any]]:
        """What was chosen when, in batches of all processes."""
        assert self.engine is not None
        count = self.processes.count
        return [{**event, "batch": count * event["batch"]} for event in self.engine.history]

    def _grow(self, engine: AdaptiveBackprop) -> None:
        own = engine.ledger.state_dict(self._entered)
        self._entered += len(own)
        rows = [row for some in self.processes.every(own) for row in some]
        for row in rows:
            self.ledger.add(Entry(**row))
        if self.writes:
            self._files["ledger.jsonl"].add(rows)
            chosen = self._files["selections.jsonl"]
            chosen.add(self.choices[chosen.rows :])


def costs(engine: AdaptiveBackprop) -> dict[str, Any]:
    """What a batch like the sample costs, with everything trained and for each tensor, in FLOPs.

    flops: of the tensor's own gradient (`t_dw`).  closure_flops: of a backward pass that trains
    this tensor alone.
    """
    graph, places = engine.graph, layout(engine.model)
    return {
        "forward_flops": graph.forward_flops,
        "full_backward_flops": graph.full_backward_flops,
        "full_flops": graph.full_flops,
        "tensors": [
            {
                "name": name,
                **places[name],
                "elements": graph.sizes[name],
                "flops": graph.own_flops[name],
                "closure_flops": graph.closure_flops[name],
            }
            for name in graph.tensors
        ],
    }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
