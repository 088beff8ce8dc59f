"""Published data sets: their files in a folder, or the hub's copy, made into examples.

A folder may hold the publisher's files or those of the hub's repository: a file belongs to the
split that its name tells (`dialogsum.dev.jsonl`, `valid.jsonl`, `train-00000-of-00001.parquet`).

Splits are the source's own.  Rows without a label are no rows.  Then, in this order:

* One split only: it is cut by hash into train, validation and test (80/10/10).
* No train: validation is train.  No test: validation is test.
* No validation: a tenth of train is held out by hash.

A prompt is in one split only: what test also has is left out of the others, and what validation
also has out of train (SciTLDR's train and dev share an abstract).
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

from greentrainer.tasks.base import SPLITS, Example, pick
from greentrainer.tasks.holdout import cut
from greentrainer.tasks.hub import hub_rows
from greentrainer.tasks.row import Row
from greentrainer.tasks.tables import ENDINGS, read

PromptFormat = Literal["plain", "paper", "source"]
FORMATS: tuple[PromptFormat, ...] = ("plain", "paper", "source")
"""Natural text; the paper's own; the bare source without a cue, for an encoder-decoder."""

_SPLIT_OF = {
    **dict.fromkeys(("train", "trainmodel"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev", "devtest"), "validation"),
    "test": "test",
}
_SHARD = re.compile(r"-\d{5}-of-\d{5}$")
_LABELS = "-labels.lst"
_HELD_OUT = 0.1


@dataclass(frozen=True)
class Form:
    """How prompts are written.  eos: the text of the tokenizer's end-of-sequence token."""

    name: PromptFormat = "plain"
    eos: str = "</s>"


@dataclass(frozen=True)
class Dataset:
    """What a data set is called, and how its rows become examples.

    hub, config: its name on the hub.
    example: of a row; None for a row without a label.
    merges: rows of the test split that share a prompt are one example with several references.
    """

    name: str
    hub: str
    scores: tuple[str, ...]
    example: Callable[[Row, Form], Example | None]
    config: str | None = None
    merges: bool = False


@dataclass(frozen=True)
class Part:
    """A split.  origin: where it came from, in words."""

    examples: Sequence[Example]
    origin: str


@dataclass(frozen=True)
class Published:
    """A task out of a published data set; from the hub where `data_dir` is None."""

    dataset: Dataset
    data_dir: Path | None = None
    form: Form = Form()

    @property
    def name(self) -> str:
        """The data set's name."""
        return self.dataset.name

    @property
    def scores(self) -> tuple[str, ...]:
        """What its answers are judged by."""
        return self.dataset.scores

    def examples(self, split: str) -> Sequence[Example]:
        """Examples of train, validation or test.

        Raises ValueError for another split, and for files that are missing or broken.
        """
        return pick(split, {name: part.examples for name, part in self._parts.items()}, self.name)

    def describe(self) -> str:
        """Where each split came from, and how many examples it has."""
        place = self.data_dir or f"{self.dataset.hub} on the hub"
        parts = (
            f"{len(part.examples):,} {name} ({part.origin})" for name, part in self._parts.items()
        )
        return f"{self.name} of {place}: {', '.join(parts)}"

    @cached_property
    def _parts(self) -> Mapping[str, Part]:
        where = f"{self.name} of {self.data_dir or self.dataset.hub}"
        own = {name: part for name, part in self._own().items() if part.examples}
        if not own:
            raise ValueError(f"{where} has no rows with labels")
        return settle({name: own[name] for name in SPLITS if name in own}, where)

    def _own(self) -> dict[str, Part]:
        """The source's own splits."""
        if self.data_dir is None:
            hint = f"give data_dir, a folder with the files of {self.name} (--data-dir)"
            found = hub_rows(self.dataset.hub, self.dataset.config, hint).items()
            return {
                _SPLIT_OF.get(name, name): self._part(rows, name, _SPLIT_OF.get(name, name))
                for name, rows in found
            }
        own = {}
        for split, paths in split_files(self.data_dir, self.dataset).items():
            rows = [row for path in paths for row in with_labels(path)]
            own[split] = self._part(rows, ", ".join(path.name for path in paths), split)
        return own

    def _part(self, rows: Iterable[Row], origin: str, split: str) -> Part:
        made = (self.dataset.example(row, self.form) for row in rows)
        examples = [example for example in made if example is not None]
        merged = self.dataset.merges and split == "test"
        return Part(_merged(examples) if merged else examples, origin)


def settle(own: Mapping[str, Part], where: str) -> dict[str, Part]:
    """Train, validation and test of the splits that a source has (see the module)."""
    if len(own) == 1:
        ((_, only),) = own.items()
        parts = cut(only.examples, {"validation": _HELD_OUT, "test": _HELD_OUT}, 0, where)
        return {name: Part(parts[name], f"of {only.origin}, by hash") for name in parts}
    train = own.get("train") or own["validation"]
    test = own.get("test") or own["validation"]
    train = _without(train, test, "test")
    if not own.keys() >= set(SPLITS):  # the validation split has another use, or there is none
        parts = cut(train.examples, {"validation": _HELD_OUT}, 0, where)
        validation = Part(parts["validation"], f"held out of {train.origin}, by hash")
        train = replace(train, examples=parts["train"])
    else:
        validation = _without(own["validation"], test, "test")
        train = _without(train, validation, "validation")
    return {"train": train, "validation": validation, "test": test}


def _without(part: Part, other: Part, name: str) -> Part:
    """The part less the prompts that the other, a split of that name, has too."""
    prompts = {example.prompt for example in other.examples}
    kept = [example for example in part.examples if example.prompt not in prompts]
    shared = len(part.examples) - len(kept)
    return Part(kept, f"{part.origin}, less {shared} also in {name}") if shared else part


def split_files(folder: Path, dataset: Dataset) -> dict[str, list[Path]]:
    """The files of each split in a folder, or in the one folder inside it that holds them.

    Raises ValueError for a folder without such files, or with too many.
    """
    if not folder.is_dir():
        raise ValueError(f"no folder {folder}: data_dir must hold the files of {dataset.name}")
    inside = sorted(path for path in folder.rglob("*") if path.is_dir())
    named = [path for path in inside if path.name == dataset.config]
    found = {path: files for path in (folder, *inside) if (files := _in_folder(path, dataset))}
    for path in (folder, *named):
        if path in found:
            return found[path]
    if len(found) == 1:
        return next(iter(found.values()))
    if found:
        raise ValueError(
            f"{folder} holds {dataset.name} more than once: give one of its folders: "
            f"{', '.join(path.name for path in found)}"
        )
    raise ValueError(
        f"{folder} holds no files of {dataset.name}: train, validation (dev, valid) or test as "
        f"{', '.join(ENDINGS)}"
    )


def _in_folder(folder: Path, dataset: Dataset) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix in ENDINGS and path.is_file():
            stem = _SHARD.sub("", path.stem.removeprefix(f"{dataset.name}."))
            if stem in _SPLIT_OF:
                found.setdefault(_SPLIT_OF[stem], []).append(path)
    for split, paths in found.items():
        if len({path.suffix for path in paths}) > 1:
            names = ", ".join(path.name for path in paths)
            raise ValueError(f"{folder} holds {split} more than once ({names}): keep one of them")
    return {split: found[split] for split in SPLITS if split in found}


def with_labels(path: Path) -> list[Row]:
    """The rows of a file; where a file `<stem>-labels.lst` is beside it, with its lines as `label`.

    Raises ValueError if the two have different numbers of rows.
    """
    rows, beside = read(path), path.with_name(f"{path.stem}{_LABELS}")
    if not beside.is_file():
        return rows
    labels = beside.read_text(encoding="utf-8", errors="replace").split()
    if len(labels) != len(rows):
        raise ValueError(f"{beside} holds {len(labels)} labels for {len(rows)} rows of {path.name}")
    return [
        replace(row, values={**row.values, "label": label})
        for row, label in zip(rows, labels, strict=True)
    ]


def _merged(examples: Iterable[Example]) -> list[Example]:
    """One example for each prompt: the first, with the references of all."""
    found: dict[str, Example] = {}
    for example in examples:
        first = found.setdefault(example.prompt, example)
        if first is not example:
            both = dict.fromkeys(first.answers + example.answers)
            found[example.prompt] = replace(first, references=tuple(both))
    return list(found.values())


def summary(source: str, references: tuple[str, ...], form: Form) -> Example:
    """A text and its summaries, the first of which is learned.

    The paper's format, `{source} TL;DR: {summary}`, has no end of sequence.  A completion begins
    with the blank that its first token holds in running text.
    """
    if form.name == "source":
        return Example(source, references[0], references=references)
    cue = " TL;DR:" if form.name == "paper" else "\nTL;DR:"
    completion = f" {references[0].strip()}"
    return Example(source, completion, cue, references, ends=form.name != "paper")
