"""What is saved of an engine, so that another one can go on from it.

`State` is the value; `plain` and `State.of` translate it into what fits JSON and back.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, field
from typing import Any

from greentrainer.budget import Budget, Clock
from greentrainer.energy import Used
from greentrainer.types import Importance, Selection, Tail

STATE_VERSION = 5


@dataclass(frozen=True)
class State:
    """What has come of an engine so far.  Its plan is not in it.

    budget: of it the unit, the amount and the cost are saved.
    used: by the run, since its start.
    trainable: names of all tensors that may be trained.
    importance: of each tensor, for each tail that it was measured for.
    worth: the same to other rows, by each pair of batches.
    reading: by each pair what steps are worth that read parts of prompts.
    verified: what the engine's verifier knows.
    history, ledger: plain values already.
    """

    budget: Budget
    clock: Clock | None
    used: Used
    trainable: frozenset[str]
    selection: Selection | None
    importance: Mapping[Tail, Importance]
    history: Sequence[dict[str, Any]]
    ledger: Sequence[dict[str, Any]]
    worth: Sequence[Mapping[Tail, Importance]] = ()
    reading: Sequence[Mapping[str, float]] = ()
    verified: Mapping[str, Any] = field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        """Plain values, fit for JSON."""
        return {
            "version": STATE_VERSION,
            "budget": _terms(self.budget),
            "clock": asdict(self.clock) if self.clock else None,
            "used": list(astuple(self.used)),
            "trainable": sorted(self.trainable),
            "selection": asdict(self.selection) if self.selection else None,
            "importance": _listed(self.importance),
            "worth": [_listed(one) for one in self.worth],
            "reading": [dict(one) for one in self.reading],
            "verified": dict(self.verified),
            "history": list(self.history),
            "ledger": list(self.ledger),
        }

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> "State":
        """From what `plain` gave.  Raises ValueError for another version."""
        if plain["version"] != STATE_VERSION:
            raise ValueError(
                f"engine state has version {plain['version']}, this is {STATE_VERSION}: "
                "resume with the release that wrote it"
            )
        chosen = plain["selection"]
        return cls(
            budget=Budget(*plain["budget"]),
            clock=Clock(**plain["clock"]) if plain["clock"] else None,
            used=Used(*plain["used"]),
            trainable=frozenset(plain["trainable"]),
            selection=Selection(**{**chosen, "names": tuple(chosen["names"])}) if chosen else None,
            importance={tail: dict(own) for tail, own in plain["importance"]},
            worth=[{tail: dict(own) for tail, own in one} for one in plain["worth"]],
            reading=[dict(one) for one in plain["reading"]],
            verified=plain.get("verified", {}),
            history=list(plain["history"]),
            ledger=plain["ledger"],
        )

    def require_fit(self, budget: Budget, trainable: frozenset[str]) -> None:
        """Raise ValueError for the state of another model or of another budget."""
        if self.trainable != trainable:
            raise ValueError("engine state belongs to a model with other trainable tensors")
        if _terms(self.budget) != _terms(budget):
            raise ValueError(
                f"engine state was written at {self.budget.unit} {self.budget.amount:g}, "
                f"this run has {budget}"
            )


def _listed(importance: Mapping[Tail, Importance]) -> list[Any]:
    return [[tail, dict(own)] for tail, own in importance.items()]


def _terms(budget: Budget) -> list[Any]:
    return [budget.unit, budget.amount, budget.cost]
