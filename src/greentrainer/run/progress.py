"""How training goes, step by step: loss, what has been spent, and what is trained."""

from collections.abc import Iterator
from contextlib import contextmanager

from greentrainer.config import RunConfig
from greentrainer.engine import AdaptiveBackprop
from greentrainer.methods import METHODS
from greentrainer.records import working
from greentrainer.run.training import Report


@contextmanager
def training_line(config: RunConfig, steps: int) -> Iterator[Report]:
    """A run of so many optimizer steps is shown in here; what it yields is told of each."""
    early = METHODS[config.method].stops_early(config)
    with working("training", steps, lasting=True) as work:

        def report(step: int, loss: float, engine: AdaptiveBackprop) -> None:
            planned = -(-(engine.planned or 0) // config.accumulate)
            chosen = early or engine.chooses_steps
            work.to(step, _figures(loss, engine), planned if chosen else steps)

        yield report


def _figures(loss: float, engine: AdaptiveBackprop) -> str:
    trained = len(engine.selection.names) if engine.selection else 0
    tail = engine.selection.tail if engine.selection else None
    through = "" if tail is None else f"  tail {tail}"
    part = engine.selection.part if engine.selection else None
    through += f"  {part} read" if part else ""
    return (
        f"loss {loss:.3f}  rho {engine.rho_spent:.3f}  "
        f"{trained}/{len(engine.graph.tensors)} tensors{through}"
    )
