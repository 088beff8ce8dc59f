"""What to fine-tune on: named tasks, and the user's own files.  No torch here but in `encode`.

    task = load("pydoc")                 # or load("mine.jsonl", prompt="question", ...)
    task.examples("train")[0]            # Example(prompt=..., cue=..., completion=...)

`encode` makes tensors of examples, `metrics` measures a model on them.
"""

from pathlib import Path

from greentrainer.tasks.base import SPLITS, Example, Task
from greentrainer.tasks.pydoc import PyDoc
from greentrainer.tasks.records import Records

__all__ = ["NAMES", "SPLITS", "Example", "Task", "load"]

NAMES = ("pydoc",)
"""Tasks that `load` knows by name."""


def load(
    name_or_path: str,
    *,
    prompt: str = "prompt",
    completion: str = "completion",
    cue: str = "",
    test_path: str | None = None,
    test_fraction: float = 0.1,
    seed: int = 0,
) -> Task:
    """The task of that name, or the user's own JSONL file.

    The keywords are for a file (see `Records`); a named task has its own format and split.
    Raises ValueError for a name that is neither, and for anything wrong in a file.
    """
    if name_or_path in NAMES:
        return PyDoc()
    path = Path(name_or_path).expanduser()
    if path.suffix != ".jsonl" and not path.exists():
        raise ValueError(
            f"no task {name_or_path!r}: give one of {', '.join(NAMES)}, or a .jsonl file"
        )
    return Records(
        path,
        prompt=prompt,
        completion=completion,
        cue=cue,
        test_path=None if test_path is None else Path(test_path).expanduser(),
        test_fraction=test_fraction,
        seed=seed,
    )
