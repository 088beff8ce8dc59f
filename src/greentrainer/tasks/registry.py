"""Tasks by name, or by the file or hub id of one's own."""

from collections.abc import Sequence
from pathlib import Path

from greentrainer.tasks.base import Task
from greentrainer.tasks.dialogsum import DIALOGSUM
from greentrainer.tasks.piqa import PIQA
from greentrainer.tasks.published import FORMATS, Form, PromptFormat, Published
from greentrainer.tasks.pydoc import PyDoc
from greentrainer.tasks.records import Records
from greentrainer.tasks.scitldr import SCITLDR
from greentrainer.tasks.sources import own
from greentrainer.tasks.webquestions import WEBQUESTIONS

_PUBLISHED = {data.name: data for data in (SCITLDR, DIALOGSUM, PIQA, WEBQUESTIONS)}
NAMES = ("pydoc", *_PUBLISHED)
"""Tasks that `load` knows by name."""


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
        own(name_or_path, ", ".join(NAMES)),
        prompt=prompt,
        completion=completion,
        messages=messages,
        cue=cue,
        judged=tuple(scores),
        test_path=_path(test_path),
        test_fraction=test_fraction,
        seed=seed,
    )


def is_published(name: str) -> bool:
    """Whether it is the name of a published data set, which takes `data_dir` and formats."""
    return name in _PUBLISHED


def _path(path: Path | str | None) -> Path | None:
    return None if path is None else Path(path).expanduser()
