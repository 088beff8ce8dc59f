"""Several processes from one command: torch's elastic launch, and what becomes of it in one line.

Each process is the same command again; it finds in its environment that it is one of several.
"""

import logging
import os
import signal
import sys
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

import psutil
import torch
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from greentrainer.config import RunConfig
from greentrainer.hf import last_whole
from greentrainer.model import started
from greentrainer.run.arguments import CHECKPOINTS
from greentrainer.run.folder import require_folder
from greentrainer.run.interrupt import STOPPING
from greentrainer.run.together import LAUNCHED, LOST, REFUSED, failed, log_of

INTERRUPTED = 130
"""Exit code of a process that was stopped."""


def wanted(config: RunConfig) -> int:
    """How many processes are to be started: 1 where there is nothing to start."""
    if started() > 1 or "RANK" in os.environ:
        return 1
    return max(1, torch.cuda.device_count()) if config.processes == "auto" else config.count


def launch(config: RunConfig, count: int, words: Sequence[str]) -> int:
    """Start the command `words` in so many processes and wait for them; the exit code.

    Raises ValueError where one ended otherwise than by itself, with what can be done.
    """
    if torch.cuda.is_available() and count > torch.cuda.device_count():
        raise ValueError(
            f"{count} processes and {torch.cuda.device_count()} GPUs: give --processes auto"
        )
    require_folder(config)
    threads = max(1, (os.cpu_count() or 1) // count)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    os.environ[LAUNCHED] = "yes"
    logging.disable(logging.CRITICAL)  # what is to be said is said below
    with tempfile.TemporaryDirectory(prefix="greentrainer") as scratch, _forwarding():
        silent = dict.fromkeys(range(1, count), Std.ALL)  # until they have files of their own
        elastic = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=count,
            run_id=str(uuid.uuid4()),
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            local_addr="localhost",
            max_restarts=0,
            logs_specs=DefaultLogsSpecs(scratch, silent),
            signals_to_handle="SIGHUP",
        )
        try:
            elastic_launch(elastic, sys.executable)("-m", "greentrainer.cli", *words)
        except ChildFailedError as error:
            return _ended(config, error.failures)
        finally:
            del os.environ[LAUNCHED]  # this one speaks for itself
    return 0


@contextmanager
def _forwarding() -> Iterator[None]:
    """Signals in here reach the processes that were started, which then end by themselves."""

    def forward(number: int, _frame: FrameType | None) -> None:
        for child in psutil.Process().children():
            child.send_signal(number)

    before = {number: signal.signal(number, forward) for number in STOPPING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _ended(config: RunConfig, failures: Mapping[int, ProcessFailure]) -> int:
    """The exit code after the failure that came first.  Raises ValueError if none has told it."""
    rank = min(failures, key=lambda rank: (_follows(failures[rank]), rank))
    one = failures[rank]
    if one.exitcode == INTERRUPTED:
        return INTERRUPTED
    told = _message(one)
    if one.exitcode != REFUSED or told is None:
        how = f"by {one.signal_name()}" if one.exitcode < 0 else f"with exit code {one.exitcode}"
        where = f" ({log_of(config.output_dir, rank)})" if rank else ""
        said = f", {told}" if told else ""
        told = f"process {rank} ended {how}{said}{where}: {go_on(config)}"
    elif rank:
        told = f"process {rank}: {told}"
    failed(config.output_dir, told, sure=True)
    raise ValueError(told)


def _follows(failure: ProcessFailure) -> int:
    """0 for a cause; more for what may come of another process's end."""
    if failure.exitcode < 0:
        return 0
    told = _message(failure) or ""
    return 3 if LOST in told else 2 if failure.exitcode == INTERRUPTED else 1


def go_on(config: RunConfig) -> str:
    """What is left of the run."""
    whole = last_whole(config.output_dir / CHECKPOINTS)
    if whole is None:
        return "no checkpoint was written (--save-every), so the run begins anew"
    return f"{whole} is whole, and --resume goes on from there"


def _message(failure: ProcessFailure) -> str | None:
    """What the process has said of its end; None if nothing."""
    data: Any = failure.error_file_data
    message = data.get("message") if isinstance(data, dict) else None
    return message.get("message") if isinstance(message, dict) else None
