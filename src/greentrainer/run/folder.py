"""A run's folder: nobody else's work is written over, and there is room for the run's own."""

import errno
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate.utils.memory import should_reduce_batch_size
from safetensors import SafetensorError

from greentrainer.config import RunConfig, require_resumable
from greentrainer.hf import last_whole
from greentrainer.records import write_text
from greentrainer.run.arguments import CHECKPOINTS
from greentrainer.run.earlier import CONFIG, DECIDED, FINISHED, OWN, put_back, size_aside
from greentrainer.run.journal import RECORD
from greentrainer.run.memory import kept_way
from greentrainer.run.unused import written

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_OPTIMIZER = 3
"""How many times its trained weights a checkpoint holds: with two moments each."""


def require_folder(config: RunConfig) -> None:
    """Raise ValueError, naming what can be done, where the run's folder holds another run.

    And for a run that is to go on and has nothing to go on from, or is to be overwritten and is
    needed: before anything is loaded, and before anything is removed.
    """
    folder = config.output_dir
    put_back(folder)
    whole = last_whole(folder / CHECKPOINTS) is not None
    finished = (folder / FINISHED).exists()
    other = f"give another folder, as --output-dir {free_name(folder)}"
    if config.resume:
        if finished and not whole:
            raise ValueError(
                f"{folder} holds a run that kept no checkpoint to go on from: give --overwrite in "
                f"place of --resume to lose it, or {other}"
            )
        require_resumable(config, folder / CONFIG)
    elif config.overwrite:
        _require_unneeded(config)
    elif whole or finished:
        go_on = "--resume to go on with it, " if whole else ""
        raise ValueError(
            f"{folder} holds an earlier run: add {go_on}--overwrite to lose it, or {other}"
        )


def _require_unneeded(config: RunConfig) -> None:
    folder = config.output_dir.resolve()
    if (folder / FINISHED).exists() and not (folder / RECORD).exists():
        raise ValueError(
            f"{config.output_dir} holds {FINISHED}/ and no {RECORD}, so no run of ours: it is not "
            "removed, choose another output_dir"
        )
    named = [config.model, config.task, *(one.path for one in config.tasks or ())]
    named += [str(path) for path in (config.test_path, config.chat_template) if path]
    for name in named:
        path = Path(name).expanduser().resolve()
        if path.exists() and any(path.is_relative_to(folder / own) for own in OWN):
            raise ValueError(
                f"{name} is in the folder that would be overwritten: choose another output_dir"
            )


def open_folder(config: RunConfig) -> None:
    """Make the run's folder, with its configuration in it."""
    config.output_dir.mkdir(parents=True, exist_ok=True)
    for name in () if config.resume else DECIDED:
        (config.output_dir / name).unlink(missing_ok=True)
    told = written(config.model_copy(update={"overwrite": False}))
    write_text(config.output_dir / CONFIG, told)  # in the place of a link, not where it leads


def free_name(folder: Path) -> Path:
    """The folder's name with the first number behind it that is free."""
    stem = re.sub(r"-\d+$", "", folder.name)
    numbers = (folder.with_name(f"{stem}-{number}") for number in range(2, 10**6))
    return next(path for path in numbers if not path.exists())


def require_disk(config: RunConfig, model: torch.nn.Module) -> None:
    """Raise ValueError where the disk has no room for the run's model and checkpoints."""
    tensors = (*model.parameters(), *model.buffers())  # tied ones once
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    whole = config.save_every and config.lora_rank is None and config.method != "lora"
    checkpoints = config.keep + 1 if whole else 0  # adapters are small
    needed = size * (1 + _OPTIMIZER * checkpoints)
    there = config.output_dir.resolve()
    free = shutil.disk_usage(next(p for p in (there, *there.parents) if p.exists())).free
    free += size_aside(config.output_dir)
    if needed > free:
        raise ValueError(
            f"{config.output_dir} needs about {_told(needed)} and {_told(free)} are free there: "
            "make room, or choose another output_dir" + (", or keep fewer" if checkpoints else "")
        )
    if size > (longest := _longest_file()):
        raise ValueError(
            f"a file may have {_told(longest)} here (ulimit -f), and the model takes "
            f"{_told(size)}: raise the limit"
        )


@contextmanager
def in_one_line(config: RunConfig) -> Iterator[None]:
    """Turn a full disk and a device out of memory into a ValueError that says what is safe."""
    try:
        yield
    except Exception as error:
        if is_full(error):
            raise ValueError(
                f"no room to write in {config.output_dir}: make some, or choose another "
                f"output_dir; {_safe(config)}"
            ) from error
        if not ran_out(error):
            raise
        way = kept_way(config.model_copy(update={"resume": True}))
        rows = (way and way.rows) or config.batch_size
        half = max(1, rows // 2)
        more = config.accumulate * config.batch_size // half
        advice = (
            f"try --batch-size {half} --accumulate {more}, which makes the same steps in pieces"
            if rows > 1
            else "try --activation-checkpointing, or a smaller --max-length"
        )
        raise ValueError(
            f"out of memory on the device with {rows} rows at a time: {advice}; {_safe(config)}"
        ) from error


def ran_out(error: BaseException) -> bool:
    """Whether it was for want of memory, of a device or of the machine."""
    known = isinstance(error, (torch.OutOfMemoryError, MemoryError))
    return known or (isinstance(error, Exception) and should_reduce_batch_size(error))


def is_full(error: BaseException) -> bool:
    """Whether it was for want of room that something was not written."""
    if isinstance(error, OSError):
        return error.errno in _FULL
    told = str(error)
    if isinstance(error, SafetensorError):
        return any(f"os error {number}" in told for number in _FULL)
    return isinstance(error, RuntimeError) and "PytorchStreamWriter" in told


def _safe(config: RunConfig) -> str:
    whole = last_whole(config.output_dir / CHECKPOINTS)
    if whole is None:
        return "no checkpoint was asked for (--save-every), so the run begins anew"
    return f"{whole} is whole, and --resume goes on from there"


def _longest_file() -> float:
    try:
        import resource
    except ImportError:  # not on Windows
        return float("inf")
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    return float("inf") if limit == resource.RLIM_INFINITY else limit


def _told(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"
