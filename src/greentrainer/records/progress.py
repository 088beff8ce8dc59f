"""How far long work has come, told as it goes: a bar on a terminal, a line now and then in a log.

    tell(console)                                     # once, by a command
    for batch in over(batches, "evaluating"): ...
    with working("training", steps) as work: work.to(3, "loss 2.1")

Where no command asked for it nothing is said: as a library the package is silent.
"""

import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import Task as RichTask
from rich.table import Column
from rich.text import Text

T = TypeVar("T")
EVERY = 30.0
"""Seconds between two lines in a log."""


@dataclass
class Work:
    """A piece of long work.

    total: parts in all, None where that is not known.  figures: how it goes.
    lasting: it is worth a line when it is done, however short it was.
    """

    what: str
    total: int | None = None
    lasting: bool = False
    done: int = 0
    figures: str = ""
    begun: float = field(default_factory=time.monotonic)
    changed: Callable[[], None] = lambda: None

    def to(self, done: int, figures: str = "", total: int | None = None) -> None:
        """So many parts are done.  total: where it turned out to be another."""
        self.done, self.figures = done, figures
        self.total = self.total if total is None else total
        self.changed()

    def line(self, ended: bool = False) -> str:
        """How it stands, on one line."""
        seconds = time.monotonic() - self.begun
        parts = f" {self.done}" + (f"/{self.total}" if self.total else "") if self.done else ""
        took = f"in {_clock(seconds)}" if ended else f"{_clock(seconds)} so far"
        if not ended and self.total and 0 < self.done < self.total:
            took += f", about {_clock(seconds * (self.total - self.done) / self.done)} left"
        return f"{self.what}{parts}  {self.figures + '  ' if self.figures else ''}{took}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


Show = Callable[[Work], AbstractContextManager[None]]
"""Makes the context in which a piece of work is shown."""


@contextmanager
def silent(_work: Work) -> Iterator[None]:
    """Nothing is said."""
    yield


class Lines:
    """A line when so many seconds have passed, and one at the end of work that had any.

    They come from a thread: also while a single part takes long.
    """

    def __init__(self, say: Callable[[str], None], every: float = EVERY) -> None:
        self.say, self.every = say, every

    @contextmanager
    def __call__(self, work: Work) -> Iterator[None]:
        """While it goes on."""
        ended = threading.Event()
        said = [work.lasting]

        def watch() -> None:
            while not ended.wait(self.every):
                said[0] = True
                self.say(work.line())

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        except BaseException:
            said[0] = False  # what went wrong is said elsewhere
            raise
        finally:
            ended.set()
            thread.join()
            if said[0]:
                self.say(work.line(ended=True))


class Bars:
    """A bar on a terminal; it goes when its work is done, unless that is lasting."""

    def __init__(self, console: Console) -> None:
        self.console, self._shown = console, False

    @contextmanager
    def __call__(self, work: Work) -> Iterator[None]:
        """While it goes on; work inside of other work has no bar of its own."""
        if self._shown:
            yield
            return
        self._shown = True
        try:
            with Progress(
                *_columns(work), console=self.console, transient=not work.lasting
            ) as bars:
                row = bars.add_task(work.what, total=work.total, figures="")

                def change() -> None:
                    bars.update(row, completed=work.done, total=work.total, figures=work.figures)

                work.changed = change
                yield
        finally:
            self._shown = False


class _Clock(TimeRemainingColumn):
    """Time left, and when all is done the time it took."""

    def render(self, task: RichTask) -> Text:
        return Text.assemble("in " if task.finished else "left ", super().render(task))


def _columns(work: Work) -> list[ProgressColumn]:
    """On a narrow terminal the bar gives way first."""
    counted = [MofNCompleteColumn(table_column=Column(no_wrap=True))] if work.total else []
    return [
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        *counted,
        _Clock(compact=True, elapsed_when_finished=True, table_column=Column(no_wrap=True)),
        TextColumn("{task.fields[figures]}"),
    ]


_show: Show = silent


def tell(console: Console) -> None:
    """From now on long work is shown: on this console if it is a terminal, else in lines."""
    global _show
    if console.quiet:
        _show = silent
    elif console.is_terminal:
        _show = Bars(console)
    else:
        _show = Lines(lambda line: print(line, file=sys.stderr, flush=True))


@contextmanager
def working(what: str, total: int | None = None, lasting: bool = False) -> Iterator[Work]:
    """A piece of work that goes on in here; tell it how far it has come."""
    work = Work(what, total, lasting)
    with _show(work):
        yield work


def over(items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
    """The items one by one; each counts as done when the next is asked for."""
    count = len(items) if total is None and isinstance(items, Sized) else total
    with working(what, count) as work:
        for number, item in enumerate(items, 1):
            yield item
            work.to(number)
