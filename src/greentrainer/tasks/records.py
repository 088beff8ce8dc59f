"""The user's own examples: a file of rows, of any kind that `formats` knows.

A row that cannot be used is an error that names it, never skipped: a fine-tuning run on half a
file looks like any other.  (Blank lines are no rows.)

Without a test file some rows are held out by hash (see `holdout`).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from greentrainer.tasks.base import SCORES, Example, pick, sizes
from greentrainer.tasks.formats import Columns, Tally, read_as
from greentrainer.tasks.holdout import apart, cut
from greentrainer.tasks.row import Row
from greentrainer.tasks.sources import rows_of
from greentrainer.tasks.stored import Stored
from greentrainer.tasks.tables import stream


@dataclass(frozen=True)
class Records:
    """A task out of `path`: a file or folder, or (a text) anything else that `sources` knows.

    prompt, completion: columns of a row's texts; a completion may be a list of right answers, the
        first of which is learned.
    messages: column of chats; by default rows are read by the columns they have (`formats`).
    cue: text put after each prompt, never cut (see `Example`).
    test_path: rows to test on; without it the test (or else validation) split on the hub, or
        `test_fraction` of the prompts (at least one, never all), chosen by `seed`.
    judged: names of `SCORES`.

    Its splits are train and test.  Raises ValueError, in one line with file and line number, for
    anything wrong in a file.
    """

    path: Path | str
    prompt: str = "prompt"
    completion: str = "completion"
    cue: str = ""
    test_path: Path | None = None
    test_fraction: float = 0.1
    seed: int = 0
    messages: str | None = None
    judged: tuple[str, ...] = ("rouge",)

    def __post_init__(self) -> None:
        if not 0 < self.test_fraction < 1:
            raise ValueError(f"test_fraction is {self.test_fraction}: it must lie between 0 and 1")
        if unknown := [name for name in self.judged if name not in SCORES]:
            raise ValueError(f"no score {unknown[0]!r}: use {', '.join(SCORES)}")

    @property
    def name(self) -> str:
        """The file's name without its endings."""
        return Path(self.path).name.partition(".")[0] or str(self.path)

    @property
    def scores(self) -> tuple[str, ...]:
        """What its answers are judged by."""
        return self.judged

    def examples(self, split: str) -> Sequence[Example]:
        """Examples of train or test, in the order of the file."""
        return pick(split, self._split[0], self.name)

    def describe(self) -> str:
        """Where the examples come from, and how many there are of each split."""
        parts, source = self._split
        return f"{self.path}: {sizes(parts)} ({source}); read as: {self._tally}"

    @cached_property
    def _split(self) -> tuple[Mapping[str, Sequence[Example]], str]:
        """The splits, and where test came from."""
        rows, test = rows_of(self.path)
        source = "test as on the hub" if isinstance(self.path, str) else "test as in the folder"
        if self.test_path is not None:
            test, source = stream(self.test_path), f"test from {self.test_path}"
        train = self._examples(rows)
        if test is not None:
            held = self._examples(test)
            left = apart(train, held)
            if not left:
                raise ValueError(f"{self.path}: every prompt is one that is tested on: add rows")
            if len(left) < len(train):
                source += f"; left out of train: {len(train) - len(left):,} that are tested on"
            return {"train": left, "test": held}, source
        shares = {"test": self.test_fraction}
        return cut(train, shares, self.seed, str(self.path)), "held out by hash"

    def _examples(self, rows: Iterable[Row]) -> Stored:
        columns = Columns(self.prompt, self.completion, self.messages, self.cue)
        examples = Stored()
        for row in rows:
            found = read_as(row, columns)
            self._tally.add(found)
            examples.add(found.example)
        return examples

    @cached_property
    def _tally(self) -> Tally:
        """Of all rows that were read so far."""
        return Tally()


def read_rows(path: Path, prompt: str, completion: str) -> Iterator[tuple[str, str]]:
    """Prompt and completion of each row of a file.

    Raises ValueError naming file and line.
    """
    for row in stream(path):
        yield row.text(prompt), row.text(completion)
