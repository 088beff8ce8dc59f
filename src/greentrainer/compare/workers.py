"""Runs in processes of their own, as many side by side as are asked for.

So memory is measured apart, and a run that is killed ends neither the comparison nor other runs.
"""

import multiprocessing
import os
import shutil
import signal
import sys
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from itertools import islice
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from rich.console import Console

from greentrainer.compare import trial as trials
from greentrainer.compare.spec import Trial
from greentrainer.compare.summary import Record
from greentrainer.forward import SIDE_BY_SIDE
from greentrainer.records import tell, write_json

INTERRUPTED = (0, -signal.SIGINT, -signal.SIGTERM, 130)
"""How the process of a run that leaves no record ends, if it was asked to end."""
QUIETLY = "greentrainer.records.hushed"
"""Loaded before all else in the process that others are forked from."""
MOMENT = 0.5
"""Seconds between two signals, so that they do not become one."""


@dataclass(frozen=True)
class Run:
    """A run to make.

    trial: with a folder of its own to work in, which is removed unless the model is kept.
    path: of the record.
    side_by_side: how many runs may go on at a time, this one counted.
    """

    trial: Trial
    path: Path
    provenance: dict[str, Any]
    keep_model: bool
    side_by_side: int

    @property
    def begun(self) -> Record:
        """What the record holds however the run ends."""
        return {
            "label": self.trial.label,
            "key": self.trial.key,
            "config": self.trial.config.model_dump(mode="json"),
            "provenance": self.provenance,
            "side_by_side": self.side_by_side,
        }


Running = dict[int, tuple[BaseProcess, Run]]
"""What goes on, by the sentinel of its process: what the system says is ready once it has ended."""


def make(runs: Iterable[Run], side_by_side: int, ended: Callable[[Run], None]) -> None:
    """Make runs in their order, the next one as soon as there is room for it.

    runs: asked for the next one only then.  ended: told of each that has a record now.
    Raises KeyboardInterrupt if this process or that of a run was interrupted.  However it ends, no
    run goes on.
    """
    waiting = iter(runs)
    running: Running = {}
    try:
        while True:
            for run in islice(waiting, side_by_side - len(running)):
                _start(run, running)
            if not running:
                return
            ready = wait(list(running))
            for sentinel in [one for one in running if one in ready]:
                process, run = running[sentinel]
                _settle(process, run)
                del running[sentinel]
                ended(run)
    finally:
        _stop(running)


def _start(run: Run, running: Running) -> None:
    """In a fresh process, which begins once it is known and so can be stopped."""
    _serve()
    context = multiprocessing.get_context("forkserver")
    go, let_go = context.Pipe(duplex=False)
    with go, let_go:
        process = context.Process(target=partial(_run, run, go))
        process.start()
        running[process.sentinel] = process, run
        let_go.send(True)


def _serve() -> None:
    """See to it that the process is there that others are forked from, deaf to Ctrl-C.

    It would die of it, loudly, while it loads torch.
    """
    multiprocessing.set_forkserver_preload([QUIETLY, __name__])
    resource_tracker.ensure_running()  # by itself later, and then it would unblock the signal
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _settle(process: BaseProcess, run: Run) -> None:
    """See to it that a run that has ended has a record; one whose process died has failed."""
    _clear(process, run)
    if run.path.exists():
        return
    if process.exitcode in INTERRUPTED:
        raise KeyboardInterrupt
    failure = f"the process ended with exit code {process.exitcode}"
    if process.exitcode == -signal.SIGKILL:
        failure = "the process was killed, perhaps for want of memory"
    write_json(run.path, run.begun | {"status": "failed", "error": failure})


def _stop(running: Running) -> None:
    """At once: a run without a record is made again from its start.

    The first signal may ask it to end its step and save, the second does not wait for that.
    """
    for process, _ in running.values():
        process.terminate()
    for process, run in running.values():
        process.join(MOMENT)
        process.terminate()
        _clear(process, run)


def _clear(process: BaseProcess, run: Run) -> None:
    process.join()
    if not run.keep_model:
        shutil.rmtree(run.trial.config.output_dir, ignore_errors=True)


def _run(run: Run, go: Connection) -> None:
    """In the new process."""
    from greentrainer.records import interrupted, quieten

    quieten()
    warnings.formatwarning = partial(_warned, run.trial.title)
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, _leave)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        go.recv()
        _share(run.side_by_side)
        trials.run(run.trial, run.begun, run.path, _console(run.side_by_side), run.keep_model)
    except (KeyboardInterrupt, EOFError):  # the latter if nobody is there who would let it go
        sys.exit(130)
    except Exception as error:
        if not interrupted(error):
            raise
        sys.exit(130)


def _share(side_by_side: int) -> None:
    """Threads and kept activations of all runs together as of one.

    Threads that the environment sets are left.
    """
    os.environ[SIDE_BY_SIDE] = str(side_by_side)
    if side_by_side > 1 and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, torch.get_num_threads() // side_by_side))


def _console(side_by_side: int) -> Console:
    """Silent beside other runs; no terminal, or rich would swallow warnings along with the rest."""
    console = Console(quiet=True, force_terminal=False) if side_by_side > 1 else Console()
    tell(console)
    return console


def _warned(title: str, message: Any, *_: Any, **__: Any) -> str:
    """A warning as one line that says whose it is."""
    return f"{title}: warning: {' '.join(str(message).split())}\n"


def _leave(_number: int, _frame: FrameType | None) -> None:
    """At the first signal; after Ctrl-C a second one comes from the process that waits."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    raise KeyboardInterrupt
