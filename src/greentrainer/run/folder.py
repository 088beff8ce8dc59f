"""A run's folder: nobody else's work is written over, and there is room for the run's own."""

import errno
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from greentrainer.config import RunConfig
from greentrainer.hf import last_whole
from greentrainer.run.arguments import CHECKPOINTS

FINISHED = "model"
"""What a run has written when there is something to lose, if it kept no checkpoints."""
OWN = (
    "config.yaml", "run.json", "costs.json", "ledger.jsonl", "log.jsonl", "metrics.json",
    "predictions.jsonl", "report.html", "selections.jsonl", "steps.jsonl", "model", CHECKPOINTS,
    "tensorboard",
)  # fmt: skip
"""Files and folders that a run writes."""
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_OPTIMIZER = 3
"""How many times its trained weights a checkpoint holds: with two moments each."""


def open_folder(config: RunConfig) -> None:
    """Note the run's configuration in its folder, which must hold no other run.

    Raises ValueError, naming what can be done, where it does; with `overwrite` that run is removed.
    """
    folder = config.output_dir
    if config.resume:
        config.require_resumable(folder / "config.yaml")
    elif config.overwrite:
        _remove(folder)
    elif last_whole(folder / CHECKPOINTS) is not None or (folder / FINISHED).exists():
        raise ValueError(
            f"{folder} holds an earlier run: add --resume to go on with it, --overwrite to lose "
            f"it, or give another folder, as --output-dir {free_name(folder)}"
        )
    folder.mkdir(parents=True, exist_ok=True)
    config.model_copy(update={"overwrite": False}).save(folder / "config.yaml")


def free_name(folder: Path) -> Path:
    """The folder's name with the first number behind it that is free."""
    stem = re.sub(r"-\d+$", "", folder.name)
    numbers = (folder.with_name(f"{stem}-{number}") for number in range(2, 10**6))
    return next(path for path in numbers if not path.exists())


def require_disk(config: RunConfig, model: torch.nn.Module) -> None:
    """Raise ValueError where the disk has no room for the run's model and checkpoints."""
    tensors = (*model.parameters(), *model.buffers())  # tied ones once
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    checkpoints = config.keep + 1 if config.save_every else 0
    needed = size * (1 + _OPTIMIZER * checkpoints)
    free = shutil.disk_usage(config.output_dir).free
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
    except torch.OutOfMemoryError as error:
        half, more = max(1, config.batch_size // 2), 2 * config.accumulate
        advice = (
            f"try --batch-size {half} --accumulate {more}, which makes the same steps in halves"
            if config.batch_size > 1
            else "try --activation-checkpointing, or a smaller --max-length"
        )
        raise ValueError(
            f"out of memory on the device with batches of {config.batch_size}: {advice}; "
            f"{_safe(config)}"
        ) from error
    except Exception as error:
        if not is_full(error):
            raise
        raise ValueError(
            f"no room to write in {config.output_dir}: make some, or choose another output_dir; "
            f"{_safe(config)}"
        ) from error


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


def _remove(folder: Path) -> None:
    """What a run wrote here; anything else stays."""
    for name in OWN:
        path: Any = folder / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _longest_file() -> float:
    try:
        import resource
    except ImportError:  # not on Windows
        return float("inf")
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    return float("inf") if limit == resource.RLIM_INFINITY else limit


def _told(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"
