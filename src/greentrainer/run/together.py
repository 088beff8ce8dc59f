"""One of several processes: what it asks of the others, and where it writes what it has to say."""

import json
import os
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import torch

from greentrainer.config import RunConfig, read
from greentrainer.methods import METHODS
from greentrainer.model import Alone, local_rank, on_this_machine, started
from greentrainer.records import write_json

LAUNCHED = "GREENTRAINER_LAUNCHED"
"""Set for processes whose launcher says what they ended by."""
LOST = "another process is gone"
"""What is said where a message to or from it failed."""
REFUSED = 2
"""Exit code of a process that has said what was wrong."""
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


def tell_launcher(told: str) -> None:
    """Leave it where torch's launchers look for what a process ended by."""
    place = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if place:
        about = {"message": told, "extraInfo": {"timestamp": str(int(time.time()))}}
        Path(place).write_text(json.dumps({"message": about}), encoding="utf-8")


def failed(folder: Path, told: str, sure: bool = False) -> None:
    """Say in the folder how the run ended, where the first process could not.

    sure: in place of what was said before, which may be what followed from it.
    """
    path = folder / "run.json"
    with suppress(OSError, ValueError):
        state = json.loads(path.read_text(encoding="utf-8"))
        if state["status"] == "running" or (sure and state["status"] == "failed"):
            write_json(path, {**state, "status": "failed", "error": told})


def require_together(config: RunConfig) -> None:
    """Raise ValueError for what several processes cannot do."""
    if started() == 1 and config.count == 1:
        return
    if config.updates == "backward":
        raise ValueError(
            "updates in the backward pass are made before gradients are exchanged: with several "
            "processes leave updates out"
        )
    if "-" in (config.task, *(one.path for one in config.tasks or ())):
        raise ValueError("standard input is read once: with several processes write it to a file")
    if config.parallel != "fsdp":
        return
    adapters = config.lora_rank is not None or config.bits or METHODS[config.method].virtual
    for asked, what in (
        (config.method == "lora" or adapters, "adapters"),
        (config.memory is not None, "memory, which is told of whole models"),
        (config.compile, "compile"),
    ):
        if asked:
            raise ValueError(f"parallel fsdp does not go with {what}: use parallel ddp")


ROOM = 0.8
"""Share of a GPU's memory that weights, gradients and two moments may take, for activations."""


def fits(model: Any, times: int) -> bool:
    """Whether this process's GPU holds so many times the model's weights; a processor does."""
    if not torch.cuda.is_available():
        return True
    there = float(torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory)
    return bool(times * sum(parameter.nbytes for parameter in model.parameters()) <= ROOM * there)


def placed(config: RunConfig, model: Any) -> RunConfig:
    """The configuration with what `parallel: auto` comes to for this model, which is put in place.

    One that is going to be sharded and fits no GPU stays in the host's memory until then.
    """
    several, parallel = config.count > 1, config.parallel
    if parallel == "auto":
        trains_all = not (config.bits or config.lora_rank or config.method == "lora")
        parallel = "fsdp" if several and trains_all and not fits(model, 4) else "ddp"
    if not config.bits and (parallel == "ddp" or not several or fits(model, 1)):
        model.to("cuda" if torch.cuda.is_available() else "cpu")
    return config.model_copy(update={"parallel": parallel})


def same_steps(config: RunConfig) -> RunConfig:
    """The configuration of a run that goes on, in steps of as many examples as it began with.

    Raises ValueError where so many processes cannot make them.
    """
    place = config.output_dir / "config.yaml"
    if not (config.resume and place.is_file()):
        return config
    before = read(place, {})
    batches = before.count * before.accumulate
    if before.count == config.count:
        return config
    if batches % config.count:
        raise ValueError(
            f"the run makes steps of {batches} batches ({before.count} processes x "
            f"{before.accumulate}): resume with a number of processes that divides them"
        )
    warnings.warn(
        f"a run of {before.count} processes goes on in {config.count}: each accumulates "
        f"{batches // config.count} batches a step in place of {before.accumulate}, and sums are "
        "made in another order",
        stacklevel=2,
    )
    return config.model_copy(update={"accumulate": batches // config.count})


def as_begun(config: RunConfig) -> RunConfig:
    """As it is written down where it goes on: of as many processes as it began with."""
    place = config.output_dir / "config.yaml"
    if not (config.resume and place.is_file()):
        return config
    return config.model_copy(update={"processes": read(place, {}).processes})


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


@contextmanager
def lost_in_one_line() -> Iterator[None]:
    """A message to or from another process that failed is a ConnectionError of one line."""
    try:
        yield
    except RuntimeError as error:
        told = str(error)
        if started() == 1 or not any(name in told for name in ("gloo", "NCCL", "c10d")):
            raise
        late = "Timed out" in told or "timeout" in told
        raise ConnectionError("another process does not answer" if late else LOST) from error


Kind = Literal["auto", "codecarbon", "estimate"]


def metered(config: RunConfig) -> tuple[Kind, float | None]:
    """How this process's part of the energy is known: one on each machine counts all of it.

    Power that was stated is that of all machines together.
    """
    if local_rank() > 0:
        return "estimate", 0.0
    machines = max(1, started() // on_this_machine())
    return config.meter, None if config.watts is None else config.watts / machines
