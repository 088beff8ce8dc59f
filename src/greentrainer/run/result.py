"""What came of a run, and its bill: what was trained and what it cost."""

import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from greentrainer.config import RunConfig
from greentrainer.energy import NOTHING, UNMETERED, Energy, Used
from greentrainer.engine import AdaptiveBackprop
from greentrainer.methods import METHODS
from greentrainer.records import Ledger
from greentrainer.run.way import Way


@dataclass(frozen=True)
class RunResult:
    """What came of a run.

    steps: made, of `planned` ones.  losses: of each step of this process's life.
    plain_steps: FLOPs of plain full fine-tuning, for each step that all the data of the run makes.
    wall_seconds, processor_seconds, energy: of all of it, set-up and tracing included.
    used: the same and the CO2, with what was used before the run was resumed.
    ledger: of all processes.  processes: how many.
    trainable_bytes: of all tensors that may be trained.
    way: how it kept within its memory, where that was asked for.
    """

    engine: AdaptiveBackprop
    model: Any
    steps: int
    planned: int
    losses: tuple[float, ...]
    interrupted: bool
    plain_steps: tuple[int, ...]
    ledger: Ledger
    processes: int = 1
    trainable_bytes: int = 0
    log: tuple[Mapping[str, Any], ...] = ()
    wall_seconds: float = 0.0
    processor_seconds: float = 0.0
    energy: Energy = UNMETERED
    used: Used = NOTHING
    way: Way | None = None


def bill_of(config: RunConfig, outcome: RunResult, peak_bytes: int) -> dict[str, Any]:
    """What was trained and what it cost."""
    engine = outcome.engine
    chosen = engine.selection
    return {
        "method": config.method,
        "rho": engine.rho,
        "budget": {"unit": engine.budget.unit, "amount": engine.budget.amount},
        "clock": asdict(engine.clock) if engine.clock else None,
        "full_seconds_by_clock": _full_seconds(outcome),
        "interrupted": outcome.interrupted,
        "steps": outcome.steps,
        "steps_asked": len(outcome.plain_steps),
        "ending": engine.ending,
        "planned_steps": outcome.planned,
        "final_training_loss": outcome.losses[-1] if outcome.losses else None,
        "tensors": len(engine.graph.tensors),
        "tensors_trained_last": len(chosen.names) if chosen else None,
        "processes": outcome.processes,
        "seconds_per_batch": _batch_seconds(outcome.ledger),
        "peak_memory_bytes": peak_bytes,
        "memory": asdict(outcome.way) if outcome.way else None,
        "wall_seconds": outcome.wall_seconds,
        "processor_seconds": outcome.processor_seconds,
        **_energy(outcome),
        "trace_seconds": engine.graphs.seconds + outcome.ledger.total("seconds", "trace"),
        "plain_full_flops": sum(outcome.plain_steps),
        "share_of_plain_full": outcome.ledger.spent_flops / sum(outcome.plain_steps),
        "full_exchanged_bytes": _full_exchange(outcome),
        **outcome.ledger.summary(),
        **_reference(outcome, METHODS[config.method].budgeted),
    }


def _full_seconds(outcome: RunResult) -> float | None:
    """Of plain full fine-tuning of all the run's data, if a clock was set."""
    engine = outcome.engine
    if engine.clock is None:
        return None
    clock = engine.clock.per_batch(engine.spending.accumulate)
    batches = engine.spending.total_batches or 0
    own = sum(outcome.plain_steps) / outcome.processes
    return clock.full(own, batches, sum(engine.graph.sizes.values()))


def _full_exchange(outcome: RunResult) -> int:
    """Bytes of the gradients of everything, in all the steps made, from each of the processes."""
    several = outcome.processes > 1
    return several * outcome.trainable_bytes * outcome.steps * outcome.processes


def _energy(outcome: RunResult) -> dict[str, Any]:
    """What was used; grams of CO2 a kWh are the mean over the run."""
    used, source = outcome.used, outcome.energy
    return {
        "used_seconds": used.seconds,
        "energy_kwh": used.kwh,
        "co2_grams": used.grams,
        "energy_source": source.source,
        "energy_measured": source.measured,
        "carbon_intensity": used.grams / used.kwh if used.kwh else 0.0,
    }


def _reference(outcome: RunResult, budgeted: bool) -> dict[str, Any]:
    """Plain full fine-tuning of the steps made, in place of the model's that was really trained.

    rho_spent: what `rho` bounds, where it bounds anything.
    """
    ledger, chosen = outcome.ledger, outcome.engine.chooses_steps
    # of a run that chooses its steps, rho is a share of all that were asked for
    full = sum(outcome.plain_steps if chosen else outcome.plain_steps[: outcome.steps])
    return {
        "full_flops": full,
        "full_macs": full // 2,
        "saved_flops": full - ledger.spent_flops,
        "rho_spent": ledger.rho_spent if budgeted and not chosen else ledger.spent_flops / full,
    }


def _batch_seconds(ledger: Ledger) -> float | None:
    """Median seconds of a training batch, the first left out where there are more."""
    seconds = [entry.seconds for entry in ledger if entry.kind == "train"]
    return statistics.median(seconds[1:] or seconds) if seconds else None
