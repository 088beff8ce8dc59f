"""A run's examples, read and encoded once: kept in the cache folder, and read from there again.

They are known again by what they were made of: the bytes of the files, the tokenizer, and every key
that has a part in it.  Only what took long to make is kept, and of that the latest few.  Examples
out of the hub, of this machine's Python or of standard input are made anew each time.
`GREENTRAINER_KEEP=off` keeps nothing and looks at nothing.
"""

import glob
import hashlib
import json
import os
import shutil
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from greentrainer.config import RunConfig
from greentrainer.hf import cache_root, keeps
from greentrainer.run.inputs import encoded, load_task, sample, training_examples
from greentrainer.tasks import NAMES, Example, encode, read_examples, write_examples

FORMAT = 2
"""To be raised when the same files come to other tokens."""
WORTH = 3.0
"""Seconds that making them must take to be kept."""
LATEST = 8
"""Of the kept ones so many stay."""
KEYS = (
    "task", "tasks", "prompt_format", "prompt_column", "completion_column", "messages_column",
    "turns", "test_path", "data_seed", "max_length", "train_limit", "test_limit",
    "validation_limit",
)  # fmt: skip
"""Keys of the configuration that have a part in it, beside the files that they name."""
ASKED = "asked.jsonl"
PARTS = ("train", "validation", "test")


@dataclass(frozen=True)
class Material:
    """Examples of a task as a run takes them.

    counts: examples of each part, before chats became several.  asked: those of the test part.
    """

    name: str
    scores: tuple[str, ...]
    counts: dict[str, int]
    asked: Sequence[Example]
    rows: dict[str, encode.EncodedRows] = field(default_factory=dict)


def material(config: RunConfig, tokenizer: Any, seq2seq: bool) -> Material:
    """The run's examples, from the cache folder where they are there."""
    key = _key(config, tokenizer, seq2seq) if keeps() else None
    folder = cache_root() / "examples" / key if key else None
    if folder is not None and (found := _kept(folder)) is not None:
        return found
    start = time.perf_counter()
    made = _made(config, tokenizer, seq2seq)
    if folder is not None and time.perf_counter() - start > WORTH:
        with suppress(OSError):  # a cache that cannot be written is none
            _keep(made, folder)
    return made


def _made(config: RunConfig, tokenizer: Any, seq2seq: bool) -> Material:
    task = load_task(config, tokenizer)
    train, validation = training_examples(task, config)
    test = sample(task.examples("test"), config.test_limit, config.data_seed)
    parts = dict(zip(PARTS, (train, validation, test), strict=True))
    return Material(
        task.name,
        tuple(task.scores),
        {name: len(examples) for name, examples in parts.items()},
        test,
        {name: encoded(part, tokenizer, config, seq2seq) for name, part in parts.items()},
    )


def _key(config: RunConfig, tokenizer: Any, seq2seq: bool) -> str | None:
    """What tells them from others; None for what is not made of files alone."""
    digest = hashlib.sha256()

    def add(value: Any) -> None:
        digest.update(json.dumps(value, sort_keys=True, default=str).encode() + b"\n")

    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    chosen = config.model_dump(mode="json", include=set(KEYS))
    add([FORMAT, seq2seq, chosen, tokenizer.chat_template, tokenizer.all_special_ids])
    digest.update(backend.to_str().encode())
    named = [one.path for one in config.tasks] if config.tasks else [config.task]
    for name in [*named, *([config.test_path] if config.test_path else [])]:
        files = [] if name in NAMES else _files(name)
        if not files:
            return None
        for path in files:
            add(str(path))
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:32]


def _files(name: str) -> list[Path]:
    """The files that a name stands for, none where it stands for something else."""
    path = Path(name).expanduser()
    if path.is_file():
        return [path]
    if path.is_dir():
        return sorted(one for one in path.rglob("*") if one.is_file())
    return sorted(Path(one) for one in glob.glob(str(path), recursive=True) if Path(one).is_file())


def _keep(made: Material, folder: Path) -> None:
    new = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")
    try:
        for name, rows in made.rows.items():
            (new / name).mkdir(parents=True)
            rows.save(new / name)
        write_examples(made.asked, new / ASKED)
        told = {"name": made.name, "scores": made.scores, "counts": made.counts}
        (new / "told.json").write_text(json.dumps(told), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(new, folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    kept = sorted(folder.parent.glob("*/told.json"), key=lambda path: path.stat().st_mtime)
    for path in kept[:-LATEST]:
        shutil.rmtree(path.parent, ignore_errors=True)


def _kept(folder: Path) -> Material | None:
    """What is in the folder; None where that is nothing, or was damaged."""
    try:
        told = json.loads((folder / "told.json").read_text(encoding="utf-8"))
        rows = {name: encode.EncodedRows.saved(folder / name) for name in PARTS}
        asked = read_examples(folder / ASKED)
        if len(asked) != told["counts"]["test"]:
            return None
        os.utime(folder / "told.json")
        return Material(
            told["name"], tuple(told["scores"]), told["counts"], asked, rows,
        )  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError):
        return None
