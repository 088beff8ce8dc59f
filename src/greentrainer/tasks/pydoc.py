"""Summarise a function: its source without the docstring in, the docstring's first line out.

The data is the Python standard library, found on any machine that runs this.  It is real (people
wrote the summaries for readers), clean, and free to use.  Nothing is imported or run: files are
parsed by `ast`, and the docstring's lines are cut out of the source text, so that the prompt keeps
the author's formatting and comments.

What is kept: functions and methods whose first docstring line is a sentence, and whose body is
neither trivial nor huge.  What is dropped: tests, IDLE and demos; an example whose prompt still
holds its summary; and a second function with the same code or the same summary.

Splits are by top-level module, through a hash of its name: no module is in two splits, and another
Python version, which has other modules, does not move the ones that it shares.  `_pydecimal` and
`decimal` count as one module.  The order within a split is by hash too, so that the first n
examples are a fair sample.
"""

import ast
import hashlib
import re
import sys
import sysconfig
import textwrap
import tokenize
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from greentrainer.tasks.base import Example, pick, sizes

CUE = "\n# Summary:\n"
SUMMARY_CHARACTERS = (20, 120)
BODY_CHARACTERS = (80, 2400)
TEST_SHARE = 0.15
VALIDATION_SHARE = 0.10

_SKIPPED_FOLDERS = frozenset(
    {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
    | {"idlelib", "lib2to3", "turtledemo", "_bundled"}
)
_SENTENCE = re.compile(r"[A-Z]\S* \S+ .*[\w)\]'\"`]\.")
_SPLIT_SALT = "greentrainer-pydoc-1"

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Entry:
    """One function.  module: the top-level module or package it is in."""

    module: str
    example: Example


@dataclass(frozen=True)
class Scan:
    """What a walk over a library found.

    files: read and parsed; unreadable: skipped, because they could not be.
    """

    entries: tuple[Entry, ...]
    files: int
    unreadable: int


@dataclass(frozen=True)
class PyDoc:
    """The task.  root: the library's folder; by default this Python's standard library."""

    root: Path | None = None

    @property
    def name(self) -> str:
        """`pydoc`."""
        return "pydoc"

    @property
    def scores(self) -> tuple[str, ...]:
        """ROUGE."""
        return ("rouge",)

    def examples(self, split: str) -> Sequence[Example]:
        """Examples of train, validation or test.

        Raises ValueError for another split, or where the library's source is not on this machine.
        """
        return pick(split, self._parts(), self.name)

    def describe(self) -> str:
        """Where the examples come from, and how many there are of each split."""
        found = scan(self._folder())
        version = ".".join(map(str, sys.version_info[:3]))
        return (
            f"pydoc: {sizes(self._parts())} from {found.files} files "
            f"({found.unreadable} unreadable) of Python {version}"
        )

    def modules(self, split: str) -> set[str]:
        """Top-level modules whose functions are in `split`."""
        return {e.module for e in scan(self._folder()).entries if split_of(e.module) == split}

    def _folder(self) -> Path:
        return self.root or Path(sysconfig.get_path("stdlib"))

    def _parts(self) -> Mapping[str, list[Example]]:
        parts: dict[str, list[Example]] = {"train": [], "validation": [], "test": []}
        for entry in scan(self._folder()).entries:
            parts[split_of(entry.module)].append(entry.example)
        return parts


def split_of(module: str) -> str:
    """The split that a top-level module belongs to, whatever other modules there are."""
    stem = module.removeprefix("_py").lstrip("_")
    digest = hashlib.sha256(f"{_SPLIT_SALT}:{stem}".encode()).digest()
    position = int.from_bytes(digest[:8]) / 2**64
    if position < TEST_SHARE:
        return "test"
    return "validation" if position < TEST_SHARE + VALIDATION_SHARE else "train"


@cache
def scan(root: Path) -> Scan:
    """Read every source file under `root` (a few seconds; kept for the life of the process).

    Raises ValueError if there is none.
    """
    counts: Counter[str] = Counter()
    entries: list[Entry] = []
    for path in _files(root):
        source = _read(path)
        counts["unreadable" if source is None else "files"] += 1
        if source is not None:
            module = path.relative_to(root).parts[0].removesuffix(".py")
            entries += [Entry(module, example) for example in _from_source(*source)]
    if not counts["files"]:
        raise ValueError(f"no Python source in {root}: pydoc needs the standard library's files")
    return Scan(_distinct(entries), counts["files"], counts["unreadable"])


def _files(root: Path) -> list[Path]:
    found = (path.relative_to(root) for path in root.rglob("*.py"))
    return [root / path for path in sorted(found) if _SKIPPED_FOLDERS.isdisjoint(path.parts)]


def _read(path: Path) -> tuple[str, ast.Module] | None:
    """A file's text and syntax tree, or None if it cannot be read or parsed."""
    try:
        with tokenize.open(path) as file:
            text = file.read()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # doubtful escapes in somebody else's source
            return text, ast.parse(text)
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):  # the last: too nested
        return None


def _from_source(text: str, tree: ast.Module) -> Iterator[Example]:
    lines = text.split("\n")
    for function in _functions(tree):
        example = _example(function, lines)
        if example is not None:
            yield example


def _functions(node: ast.AST) -> Iterator[Function]:
    """Functions and methods in the order of the text, without those inside another function."""
    waiting = [node]  # a list, because a long sum is deeper than Python may recurse
    while waiting:
        found = waiting.pop()
        if isinstance(found, Function):
            yield found
        else:
            waiting += reversed(list(ast.iter_child_nodes(found)))


def _example(function: Function, lines: list[str]) -> Example | None:
    """The example that a function makes, or None if it is not fit."""
    summary = (ast.get_docstring(function) or "").split("\n")[0].strip()
    low, high = SUMMARY_CHARACTERS
    if not (low <= len(summary) <= high and _SENTENCE.fullmatch(summary)):
        return None
    code = _without_docstring(function, lines)
    if code is None or summary.rstrip(".").casefold() in code.casefold():
        return None
    return Example(prompt=code, completion=summary, cue=CUE)


def _without_docstring(function: Function, lines: list[str]) -> str | None:
    """A function's source with its docstring's lines cut out.

    None if the docstring shares a line with code, or if what is left is trivial or huge.
    """
    docstring, rest = function.body[0], function.body[1:]
    end = docstring.end_lineno or docstring.lineno
    start = min(node.lineno for node in (function, *function.decorator_list))
    if not rest or docstring.lineno == function.lineno or rest[0].lineno <= end:
        return None
    tail = lines[end : function.end_lineno]
    low, high = BODY_CHARACTERS
    if not low <= len(textwrap.dedent("\n".join(tail)).strip()) <= high:
        return None
    head = lines[start - 1 : docstring.lineno - 1]
    if not head[-1].split("#")[0].rstrip().endswith(":"):
        return None
    return textwrap.dedent("\n".join([*head, *tail])).rstrip()


def _distinct(entries: list[Entry]) -> tuple[Entry, ...]:
    """The first entry of each code and of each summary, in the order of a hash of the code."""
    codes: dict[str, Entry] = {}
    for entry in entries:
        codes.setdefault("".join(entry.example.prompt.split()), entry)
    summaries: dict[str, Entry] = {}
    for entry in codes.values():
        summaries.setdefault(entry.example.completion.casefold(), entry)
    return tuple(sorted(summaries.values(), key=_rank))


def _rank(entry: Entry) -> bytes:
    return hashlib.sha256(entry.example.prompt.encode()).digest()
