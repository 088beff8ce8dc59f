"""Tasks by name, or by the file or hub id of one's own."""

import re
from collections.abc import Sequence
from pathlib import Path

from greentrainer.tasks.base import Task
from greentrainer.tasks.dialogsum import DIALOGSUM
from greentrainer.tasks.piqa import PIQA
from greentrainer.tasks.published import FORMATS, Form, PromptFormat, Published
from greentrainer.tasks.pydoc import PyDoc
from greentrainer.tasks.records import Records
from greentrainer.tasks.scitldr import SCITLDR
from greentrainer.tasks.tables import ENDINGS
from greentrainer.tasks.webquestions import WEBQUESTIONS

_PUBLISHED = {data.name: data for data in (SCITLDR, DIALOGSUM, PIQA, WEBQUESTIONS)}
NAMES = ("pydoc", *_PUBLISHED)
"""Tasks that `load` knows by name."""

_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")


def load(
    name_or_path: str,
    *,
    data_dir: Path | str | None = None,
    prompt_format: PromptFormat = "plain",
    eos: str = "</s>",
    prompt: str = "prompt",
    completion: str = "completion",
    messages: str | None = None,
    cue: str = "",
    scores: Sequence[str] = ("rouge",),
    test_path: Path | str | None = None,
    test_fraction: float = 0.1,
    seed: int = 0,
) -> Task:
    """The task of that name, or the user's own file or data set on the hub (`org/name`).

    data_dir: folder with the files of a published data set; from the hub without it.
    prompt_format: of a published data set; eos: the text of the tokenizer's end-of-sequence token,
        which the paper's format holds.

    The other keywords are for the user's own (see `Records`); a named task has its own columns and
    splits.  Raises ValueError for a name that is none, and for anything wrong in a file.
    """
    if prompt_format not in FORMATS:
        raise ValueError(f"no prompt format {prompt_format!r}: use one of {', '.join(FORMATS)}")
    if name_or_path in _PUBLISHED:
        return Published(_PUBLISHED[name_or_path], _path(data_dir), Form(prompt_format, eos))
    if data_dir is not None or prompt_format != "plain":
        raise ValueError(
            f"{name_or_path} takes no data_dir and no prompt_format: they are for "
            f"{', '.join(_PUBLISHED)}"
        )
    if name_or_path in NAMES:
        return PyDoc()
    return Records(
        _own(name_or_path),
        prompt=prompt,
        completion=completion,
        messages=messages,
        cue=cue,
        judged=tuple(scores),
        test_path=_path(test_path),
        test_fraction=test_fraction,
        seed=seed,
    )


def _path(path: Path | str | None) -> Path | None:
    return None if path is None else Path(path).expanduser()


def _own(name: str) -> Path | str:
    """The file of that name, or else a hub id."""
    path = Path(name).expanduser()
    if path.exists() or path.suffix.lower() in ENDINGS:
        return path
    if _HUB_ID.fullmatch(name):
        return name
    raise ValueError(
        f"no task {name!r}: give one of {', '.join(NAMES)}, a {', '.join(ENDINGS)} file, or a hub "
        "id such as org/name"
    )
