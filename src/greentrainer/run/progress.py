"""The line that shows how training goes: steps, time left, loss, and what is trained."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.progress import Task as RichTask
from rich.table import Column
from rich.text import Text

from greentrainer.config import RunConfig
from greentrainer.engine import AdaptiveBackprop
from greentrainer.methods import METHODS
from greentrainer.run.training import Report


@contextmanager
def training_line(console: Console, config: RunConfig, steps: int) -> Iterator[Report]:
    """A line for a run of so many optimizer steps; what it yields is told of each."""
    shortened = METHODS[config.method].shortened
    with _progress(console) as progress:
        line = progress.add_task("training", total=steps, figures="")

        def report(step: int, loss: float, engine: AdaptiveBackprop) -> None:
            planned = -(-(engine.spending.total_batches or 0) // config.accumulate)
            total = planned if shortened else steps
            progress.update(line, completed=step, total=total, figures=_figures(loss, engine))

        yield report


def _figures(loss: float, engine: AdaptiveBackprop) -> str:
    trained = len(engine.selection.names) if engine.selection else 0
    tail = engine.selection.tail if engine.selection else None
    through = "" if tail is None else f"  tail {tail}"
    return (
        f"loss {loss:.3f}  rho {engine.ledger.rho_spent:.3f}  "
        f"{trained}/{len(engine.graph.tensors)} tensors{through}"
    )


class _Clock(TimeRemainingColumn):
    """Time left, and when all is done the time it took."""

    def render(self, task: RichTask) -> Text:
        return Text.assemble("in " if task.finished else "left ", super().render(task))


def _progress(console: Console) -> Progress:
    """On a narrow terminal the bar gives way first."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(table_column=Column(no_wrap=True)),
        _Clock(compact=True, elapsed_when_finished=True, table_column=Column(no_wrap=True)),
        TextColumn("{task.fields[figures]}"),
        console=console,
    )
