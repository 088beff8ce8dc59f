"""Where rows come from: a file, several, a data set on disk or on the hub, or standard input.

| given | read |
|---|---|
| `rows.jsonl`, `rows.csv.gz`, ... | the file (`tables`) |
| `folder/` | what `datasets` saved there, or all the files in it that are known, by name |
| `part-*.jsonl` | all files of such names, by name |
| `org/name`, `org/name:split` | a data set on the hub, all splits or one |
| `-` | standard input: JSON, or JSON lines |
"""

import glob
import io
import re
import sys
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path

from greentrainer.tasks.hub import hub_rows
from greentrainer.tasks.row import Numbered, Row
from greentrainer.tasks.tables import ENDINGS, PACKED, rows_in, stream

STANDARD_INPUT = "-"
HUB_ID = re.compile(r"(?P<name>\w[\w.-]*/\w[\w.-]*)(:(?P<split>[\w.-]+))?")
_SAVED = ("state.json", "dataset_dict.json")
"""Files that mark a folder as one that `save_to_disk` wrote."""


def own(name: str, known: str) -> Path | str:
    """What a name of the user's stands for: a path, a pattern, a hub id or standard input.

    known: names of tasks, for the error.  Raises ValueError for a name that is none.
    """
    path = Path(name).expanduser()
    endings = {ending.lower() for ending in path.suffixes[-2:]}
    if name == STANDARD_INPUT or (glob.has_magic(name) and not path.exists()):
        return name
    if path.exists() or endings & {*ENDINGS, *PACKED}:
        return path
    if HUB_ID.fullmatch(name):
        return name
    raise ValueError(
        f"no task {name!r}: give one of {known}, a {', '.join(ENDINGS)} file, or a hub "
        "id such as org/name"
    )


def rows_of(source: Path | str) -> tuple[Iterable[Row], Iterable[Row] | None]:
    """Rows to train on, and the source's own rows to test on, None if it has none.

    Raises ValueError, in one line, for what cannot be read.
    """
    if isinstance(source, Path):
        return _folder(source) if source.is_dir() else (stream(source), None)
    if source == STANDARD_INPUT:
        return _standard_input(), None
    if glob.has_magic(source):
        paths = sorted(map(Path, glob.glob(str(Path(source).expanduser()), recursive=True)))
        files = [path for path in paths if path.is_file()]
        if not files:
            raise ValueError(f"no file is called {source}")
        return (row for path in files for row in stream(path)), None
    found = HUB_ID.fullmatch(source)
    assert found is not None
    hint = "give a file instead, no such file is here"
    return _split(hub_rows(found["name"], None, hint), source, found["split"])


def _folder(folder: Path) -> tuple[Iterable[Row], Iterable[Row] | None]:
    if any((folder / name).is_file() for name in _SAVED):
        return _split(_saved(folder), str(folder), None)
    files = [path for path in sorted(folder.iterdir()) if path.is_file() and _known(path)]
    rows = [path for path in files if path.suffix.lower() != ".txt"]
    files = rows or files  # beside rows a text says what they are
    if not files:
        raise ValueError(f"{folder} is a folder without any {', '.join(ENDINGS)} file")
    return (row for path in files for row in stream(path)), None


def _known(path: Path) -> bool:
    name = path.with_suffix("") if path.suffix.lower() in PACKED else path
    return name.suffix.lower() in ENDINGS


def _saved(folder: Path) -> dict[str, Numbered]:
    import datasets

    try:
        found = datasets.load_from_disk(str(folder))
    except Exception as error:  # whatever the library and its readers raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ValueError(f"cannot read the data set in {folder} ({reason})") from error
    parts = found if isinstance(found, datasets.DatasetDict) else {"train": found}
    return {str(name): Numbered(rows, f"{folder}, {name}") for name, rows in parts.items()}


def _split(
    found: Mapping[str, Numbered], name: str, split: str | None
) -> tuple[Numbered, Numbered | None]:
    """Rows to train and to test on, of a data set's splits or the one that is asked for."""
    if split is not None:
        if split not in found:
            raise ValueError(f"{name}: no split {split!r}, use one of {', '.join(found)}")
        return found[split], None
    train = found.get("train") or next(iter(found.values()), None)
    if not train:
        raise ValueError(f"{name} holds no rows")
    test = found.get("test") or found.get("validation") or None
    return train, None if test is train else test


@cache
def _standard_input() -> list[Row]:
    """What came in, once: several may ask."""
    content = sys.stdin.buffer.read().removeprefix(b"\xef\xbb\xbf")
    ending = ".json" if content.lstrip()[:1] == b"[" else ".jsonl"
    return list(rows_in(Path("standard input"), io.BytesIO(content), ending))
