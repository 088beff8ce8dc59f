"""An earlier run in the folder, kept until the command that takes its place has made a step.

Whatever is refused before that, and whatever ends the command, leaves the folder as it was: at
once, or, where the command was killed, by the next one on the folder.  Files are renamed, so it
takes neither time nor room.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from greentrainer.config import RunConfig
from greentrainer.run.arguments import CHECKPOINTS
from greentrainer.run.journal import ENDING, GROWING, RECORD
from greentrainer.run.memory import KEPT as WAY
from greentrainer.run.pace import KEPT as PACE

ASIDE = "earlier-run"
"""Where its files are meanwhile, all of them."""
_MOVING = f"{ASIDE}-moving"
"""While they are on their way, there or back: nothing else in the folder is to be removed."""
_GOING = f"{ASIDE}-going"
"""What may be removed whenever it is seen."""
_NAMES = "names.json"
CONFIG = "config.yaml"
FINISHED = "model"
"""What a run has written when there is something to lose, if it kept no checkpoints."""
DECIDED = (WAY, PACE)
"""What a run decided before it began, for when it is resumed."""
OWN = (CONFIG, RECORD, *ENDING, *GROWING, FINISHED, *DECIDED, CHECKPOINTS, "tensorboard", "logs")
"""Files and folders that a run writes."""


@contextmanager
def kept(config: RunConfig, told: Callable[[str], None]) -> Iterator[Callable[[], None]]:
    """While in it what this run replaces of an earlier one is set aside; yields what lets go of it.

    With `overwrite` that is all of it, with `resume` what says how it ended.  It is put back by an
    error before it was let go of, and `told` says so.
    """
    folder = config.output_dir
    replaced = (CONFIG, RECORD, *ENDING) if config.resume else OWN
    there = [name for name in replaced if os.path.lexists(folder / name)]
    if not there or not (config.overwrite or config.resume):
        yield lambda: None
        return
    held = True
    with ExitStack() as stack:
        stack.enter_context(_alone(folder))
        _set_aside(folder, replaced, there)

        def let_go() -> None:
            nonlocal held
            if held:
                held = False
                os.replace(folder / ASIDE, folder / _GOING)
                shutil.rmtree(folder / _GOING, ignore_errors=True)
                stack.close()

        try:
            yield let_go
        except BaseException:
            if held:
                _put_back(folder)
                told(f"{folder} holds the earlier run as it was")
            raise
        let_go()


def put_back(folder: Path) -> None:
    """Put back what a killed command set aside, and remove what it wrote itself.

    Raises ValueError where that command is still at work.
    """
    if any((folder / name).exists() for name in (ASIDE, _MOVING, _GOING)):
        with _alone(folder):
            _put_back(folder)


def size_aside(folder: Path) -> int:
    """Bytes that letting go of it will free."""
    files = (path for path in (folder / ASIDE).rglob("*") if path.is_file())
    return sum(path.lstat().st_size for path in files)


def remove(path: Path) -> None:
    """Remove a file, a folder, or a link and not what it leads to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    path = folder / f"{ASIDE}.lock"
    with ExitStack() as stack:
        try:
            stack.enter_context(FileLock(path).acquire(blocking=False))
        except Timeout:
            raise ValueError(
                f"another command is about to train in {folder}: wait for it, or choose another "
                "output_dir"
            ) from None
        stack.callback(path.unlink, missing_ok=True)
        yield


def _set_aside(folder: Path, names: Sequence[str], there: Sequence[str]) -> None:
    moving = folder / _MOVING
    moving.mkdir(exist_ok=True)
    (moving / _NAMES).write_text(json.dumps(list(names)), encoding="utf-8")
    for name in there:
        os.replace(folder / name, moving / name)
    os.replace(moving, folder / ASIDE)


def _put_back(folder: Path) -> None:
    shutil.rmtree(folder / _GOING, ignore_errors=True)
    aside, moving = folder / ASIDE, folder / _MOVING
    if aside.is_dir():
        for name in json.loads((aside / _NAMES).read_text(encoding="utf-8")):
            if name in OWN:  # the file may be anybody's: nothing else is removed for it
                remove(folder / name)
        os.replace(aside, moving)
    if moving.is_dir():
        for path in moving.iterdir():
            if path.name != _NAMES:
                os.replace(path, folder / path.name)
        remove(moving)
