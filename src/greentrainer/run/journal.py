"""The record of a run in its folder, true at any moment: also after `kill -9`.

`run.json` says how the run stands, `costs.json` what each tensor costs; `ledger.jsonl`,
`selections.jsonl`, `log.jsonl` and `steps.jsonl` grow with every optimizer step.  A step's entries
are final once it has ended, and are written then.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from greentrainer.engine import AdaptiveBackprop
from greentrainer.hf import layout
from greentrainer.records import Growing, provenance, read_lines, write_json

RECORD = "run.json"
"""What every run writes first."""
FORMAT = 1
"""Version of the record."""
Status = Literal["running", "done", "interrupted", "failed"]
GROWING = ("ledger.jsonl", "selections.jsonl", "log.jsonl", "steps.jsonl")
ENDING = ("costs.json", "metrics.json", "predictions.jsonl", "report.html")
"""Files that say how an earlier run in the folder ended."""


class Journal:
    """Keeps the record of one process's part of a run.

    command: what was typed, None if the run was started otherwise.
    resumes: whether the run may go on from a checkpoint in the folder.
    stepped: called when a step has been made and written down.
    """

    def __init__(
        self,
        folder: Path,
        command: str | None,
        seed: int,
        resumes: bool,
        stepped: Callable[[], None] = lambda: None,
    ) -> None:
        self.folder, self.stepped = folder, stepped
        self.engine: AdaptiveBackprop | None = None
        self._files = {name: Growing(folder / name) for name in GROWING}
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
            "provenance": provenance([seed]),
        }
        self.note()

    def note(self, **facts: Any) -> None:
        """Add facts to `run.json`."""
        self._state |= {**facts, "updated": _now()}
        write_json(self.folder / RECORD, self._state)

    def begin(
        self, engine: AdaptiveBackprop, planned: int, made: int, log: Sequence[Mapping[str, Any]]
    ) -> None:
        """Training begins: `planned` optimizer steps, of which `made` were made before.

        log: the Trainer's, of earlier steps too.
        """
        self.engine = engine
        write_json(self.folder / "costs.json", costs(engine))
        earlier = [row for row in read_lines(self.folder / "steps.jsonl") if row["step"] <= made]
        self._files["steps.jsonl"].add(earlier)
        self.log(log)
        self._grow(engine)
        self.note(planned_steps=planned, steps=made, resumed_at_step=made or None)

    def step(self, step: int, loss: float) -> None:
        """An optimizer step has ended."""
        assert self.engine is not None
        self._grow(self.engine)
        ledger = self.engine.ledger
        row = {
            "step": step,
            "loss": loss,
            "batches": ledger.batches,
            "spent_flops": ledger.spent_flops,
            "full_flops": ledger.full_flops,
            "at": _now(),
        }
        self._files["steps.jsonl"].add([row])
        self.note(steps=step)
        self.stepped()

    def log(self, log: Sequence[Mapping[str, Any]]) -> None:
        """Something was added to the Trainer's log."""
        lines = self._files["log.jsonl"]
        lines.add(log[lines.rows :])

    def end(self, status: Status, error: str | None = None) -> None:
        """The run is over.  error: why, in one line."""
        if self.engine is not None:
            self._grow(self.engine)
        self.note(status=status, error=error, ended=_now())

    def broke_off(self, error: BaseException) -> None:
        """The run is over by an exception."""
        text = " ".join(str(error).split())[:500] or type(error).__name__
        stopped = isinstance(error, KeyboardInterrupt)
        self.end(
            "interrupted" if stopped else "failed",
            "stopped at once, without saving" if stopped else text,
        )

    def _grow(self, engine: AdaptiveBackprop) -> None:
        books, choices = self._files["ledger.jsonl"], self._files["selections.jsonl"]
        books.add(engine.ledger.state_dict(books.rows))
        choices.add(engine.history[choices.rows :])


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
