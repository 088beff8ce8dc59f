"""One of several processes: what it asks of the others, and where it writes what it has to say."""

import os
import sys
import warnings
from pathlib import Path
from typing import Literal

from greentrainer.config import RunConfig
from greentrainer.model import Alone, local_rank, on_this_machine, started

LOGS = "logs"
"""Folder in that of the run where processes other than the first say what they have to say."""


def together(config: RunConfig, processes: Alone) -> RunConfig:
    """The first process's configuration, with as many processes as there are."""
    if config.processes not in ("auto", 1, processes.count) and processes.rank == 0:
        warnings.warn(
            f"{processes.count} processes were started, so processes: {config.processes} is passed "
            "over",
            stacklevel=2,
        )
    own = config.model_copy(update={"processes": processes.count})
    agreed: RunConfig = processes.first(own)
    return agreed


def log_of(folder: Path, rank: int) -> Path:
    """Where a process other than the first writes."""
    return folder / LOGS / f"rank{rank}.log"


def own_log(folder: Path, rank: int) -> None:
    """From now on what this process would say on the terminal is in a file, unless it is first."""
    if rank == 0:
        return
    path = log_of(folder, rank)
    path.parent.mkdir(exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    with path.open("a", encoding="utf-8") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)


Kind = Literal["auto", "codecarbon", "estimate"]


def metered(config: RunConfig) -> tuple[Kind, float | None]:
    """How this process's part of the energy is known: one on each machine counts all of it.

    Power that was stated is that of all machines together.
    """
    if local_rank() > 0:
        return "estimate", 0.0
    machines = max(1, started() // on_this_machine())
    return config.meter, None if config.watts is None else config.watts / machines
