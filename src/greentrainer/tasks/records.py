"""The user's own examples: a JSONL file, one object a line with a prompt and a completion.

A line that cannot be used is an error that names it, never skipped: a fine-tuning run on half a
file looks like any other.  (Blank lines are no rows.)

Without a test file some rows are held out: those whose prompts come first in the order of a hash of
seed and prompt.  So equal prompts are never on both sides, and rows added later move few others.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from greentrainer.tasks.base import Example, pick, sizes


@dataclass(frozen=True)
class Records:
    """A task out of `path`.

    prompt, completion: keys of a row's two texts.
    cue: text put after each prompt, never cut (see `Example`).
    test_path: rows to test on; without it `test_fraction` of the prompts of `path` are held out
        (at least one, never all), chosen by `seed`.

    Its splits are train and test.  Raises ValueError, in one line with file and line number, for
    anything wrong in a file.
    """

    path: Path
    prompt: str = "prompt"
    completion: str = "completion"
    cue: str = ""
    test_path: Path | None = None
    test_fraction: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.test_fraction < 1:
            raise ValueError(f"test_fraction is {self.test_fraction}: it must lie between 0 and 1")

    @property
    def name(self) -> str:
        """The file's name without its ending."""
        return self.path.stem

    @property
    def scores(self) -> tuple[str, ...]:
        """ROUGE."""
        return ("rouge",)

    def examples(self, split: str) -> list[Example]:
        """Examples of train or test, in the order of the file."""
        return pick(split, self._parts, self.name)

    def describe(self) -> str:
        """Where the examples come from, and how many there are of each split."""
        source = "held out by hash" if self.test_path is None else f"test from {self.test_path}"
        return f"{self.path}: {sizes(self._parts)} ({source})"

    @cached_property
    def _parts(self) -> Mapping[str, list[Example]]:
        rows = self._read(self.path)
        if self.test_path is not None:
            return {"train": rows, "test": self._read(self.test_path)}
        held_out = self._held_out(rows)
        return {
            "train": [row for row in rows if row.prompt not in held_out],
            "test": [row for row in rows if row.prompt in held_out],
        }

    def _read(self, path: Path) -> list[Example]:
        rows = list(read_rows(path, self.prompt, self.completion))
        return [Example(prompt, completion, self.cue) for prompt, completion in rows]

    def _held_out(self, rows: list[Example]) -> set[str]:
        prompts = sorted({row.prompt for row in rows}, key=self._rank)
        if len(prompts) < 2:
            raise ValueError(
                f"{self.path} has one prompt only, none can be held out: add rows or a test file"
            )
        count = round(self.test_fraction * len(prompts))
        return set(prompts[: min(max(1, count), len(prompts) - 1)])

    def _rank(self, prompt: str) -> bytes:
        return hashlib.sha256(f"{self.seed}:{prompt}".encode()).digest()


def read_rows(path: Path, prompt: str, completion: str) -> Iterator[tuple[str, str]]:
    """Prompt and completion of each row of a JSONL file.

    Raises ValueError naming file and line.
    """
    found = False
    for number, line in enumerate(_bytes(path).split(b"\n"), 1):
        if line.strip():
            found = True
            row = _row(line, f"{path}, line {number}")
            texts = [_text(row, key, f"{path}, line {number}") for key in (prompt, completion)]
            yield texts[0], texts[1]
    if not found:
        raise ValueError(f"{path} holds no rows: write one JSON object a line")


def _bytes(path: Path) -> bytes:
    if path.is_dir():
        raise ValueError(f"{path} is a folder: give a .jsonl file")
    try:
        return path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from error


def _row(line: bytes, where: str) -> dict[str, object]:
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: not UTF-8: save the file as UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: not JSON ({error}): write one object a line") from error
    if not isinstance(row, dict):
        raise ValueError(f"{where}: a JSON {type(row).__name__}, not an object with named texts")
    return row


def _text(row: dict[str, object], key: str, where: str) -> str:
    if key not in row:
        raise ValueError(f"{where}: no {key!r} among the keys {', '.join(map(repr, row))}")
    text = row[key]
    if not isinstance(text, str):
        raise ValueError(f"{where}: {key!r} is a {type(text).__name__}, not a text")
    if not text.strip():
        raise ValueError(f"{where}: {key!r} is empty")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError(f"{where}: {key!r} holds half of a surrogate pair, which is no text")
    return text
