"""Checkpoints that can be trusted: the engine's state beside the Trainer's, and a seal.

The seal, `greentrainer.json`, is written last and in one step.  It holds the engine's state, the
names of the optimizer's tensors in its order, and the size of every other file.  A folder without
it, or with a file of another size, was not finished and is passed over for the last one that was.
"""

import json
import os
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from greentrainer.budget import Budget, Clock
from greentrainer.engine import STATE_VERSION, AdaptiveBackprop
from greentrainer.model import Alone
from greentrainer.records import Entry

SEAL = "greentrainer.json"
_FOLDER = re.compile(r"checkpoint-(\d+)")


def seal(folder: Path, engine: AdaptiveBackprop, ledgers: list[Any] | None = None) -> None:
    """Write the engine's state into a checkpoint and declare it whole.

    ledgers: the books of each process, where there are several.
    """
    value = {
        "engine": engine.state_dict(),
        "ledgers": ledgers or [engine.ledger.state_dict()],
        "optimizer_tensors": optimizer_tensors(engine.model, engine.optimizer),
        "with_state": with_state(engine.model, engine.optimizer),
        "shapes": {name: list(p.shape) for name, p in engine.model.named_parameters()},
        "versions": _versions(),
        "files": {str(path.relative_to(folder)): path.stat().st_size for path in _files(folder)},
    }
    part = folder / f"{SEAL}.part"
    part.write_text(json.dumps(value), encoding="utf-8")
    os.replace(part, folder / SEAL)


def is_whole(folder: Path) -> bool:
    """Whether a checkpoint is sealed and every file has the size it was sealed with."""
    try:
        files = json.loads((folder / SEAL).read_text(encoding="utf-8"))["files"]
        return all((folder / name).stat().st_size == size for name, size in files.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def last_whole(output_dir: Path) -> Path | None:
    """The newest checkpoint in `output_dir` that is whole, None if there is none."""
    numbered = [
        (int(m[1]), p) for p in output_dir.glob("checkpoint-*") if (m := _FOLDER.fullmatch(p.name))
    ]
    return next((path for _, path in sorted(numbered, reverse=True) if is_whole(path)), None)


def read(folder: Path) -> dict[str, Any]:
    """What `seal` wrote.  Raises ValueError, in one line, if the checkpoint is not whole."""
    if not (folder / SEAL).is_file():
        raise ValueError(
            f"{folder} holds no {SEAL}: it was not finished, or written by another trainer"
        )
    if not is_whole(folder):
        raise ValueError(f"{folder} is damaged: resume from an older checkpoint")
    value: dict[str, Any] = json.loads((folder / SEAL).read_text(encoding="utf-8"))
    return value


@contextmanager
def in_one_line(folder: Path) -> Iterator[None]:
    """Turn what a seal of other values than `seal` writes leads to into a ValueError of one line.

    Whole it may be all the same: the file may be anybody's.
    """
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise ValueError(
            f"{folder} is damaged: {SEAL} does not hold what a run writes ({reason}): resume from "
            "an older checkpoint"
        ) from error


@contextmanager
def loading(folder: str | Path) -> Iterator[None]:
    """Turn what the Trainer's own files lead to, where they hold something else, into a ValueError.

    It reads them without running what they hold (`torch.load(weights_only=True)`).
    """
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError, OSError, ValueError):
        raise
    except Exception as error:  # whatever the files lead to
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise ValueError(
            f"the state of optimizer, schedule or random streams in {folder} cannot be read "
            f"({reason}): resume from another checkpoint"
        ) from error


def require_fit(saved: Mapping[str, Any], model: nn.Module, budget: Budget, where: Path) -> None:
    """Raise ValueError if a checkpoint belongs to another model, budget or format.

    Other versions of the libraries are told in a warning: results may differ in the last bits.
    """
    state = saved["engine"]
    if state["version"] != STATE_VERSION:
        raise ValueError(
            f"{where} has engine state of version {state['version']}, this release reads "
            f"{STATE_VERSION}: resume with the release that wrote it ({saved['versions']})"
        )
    shapes = {name: list(p.shape) for name, p in model.named_parameters()}
    differing = sorted(
        n for n in {*shapes, *saved["shapes"]} if shapes.get(n) != saved["shapes"].get(n)
    )
    if differing:
        raise ValueError(
            f"{where} belongs to another model: {len(differing)} tensors differ, such as "
            f"{differing[0]}"
        )
    unit, amount, cost = state["budget"]
    if (unit, amount, cost) != (budget.unit, budget.amount, budget.cost):
        raise ValueError(f"{where} was written at {unit!s:.20} {amount:g}, this run has {budget}")
    changed = {k: v for k, v in saved["versions"].items() if _versions().get(k) != v}
    if changed:
        warnings.warn(f"{where} was written with {changed}: the last bits may differ", stacklevel=3)


def budget_of(saved: Mapping[str, Any], budget: Budget) -> Budget:
    """The budget, with the clock of the run that was saved: it need not be set again."""
    clock = saved["engine"]["clock"]
    return budget if clock is None else replace(budget, clock=Clock(**clock))


def state_for(saved: Mapping[str, Any], processes: Alone) -> dict[str, Any]:
    """The engine's state for this process, with its own books.

    Of another number of processes than wrote it each goes on with its part of all their books, and
    numbers of batches are those that it would have had.
    """
    ledgers, count = saved["ledgers"], processes.count
    if len(ledgers) == count:
        return {**saved["engine"], "ledger": ledgers[processes.rank]}
    trained = [[row for row in own if row["kind"] == "train"] for own in ledgers]
    each = [row for some in zip(*trained, strict=True) for row in some]
    each += [asdict(Entry("train"))] * (-len(each) % count)  # all have as many
    others = [row for own in ledgers for row in own if row["kind"] != "train"]
    ledger = [*(others if processes.rank == 0 else ()), *each[processes.rank :: count]]
    times = len(ledgers) / count
    engine = saved["engine"]
    history = [{**event, "batch": round(times * event["batch"])} for event in engine["history"]]
    verified = dict(engine["verified"])
    if "last" in verified:
        verified["last"] = round(times * verified["last"])
    return {**engine, "ledger": ledger, "history": history, "verified": verified}


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """Names of the optimizer's tensors in the order that its saved state numbers them by."""
    names = {id(p): name for name, p in model.named_parameters()}
    return [names[id(p)] for group in optimizer.param_groups for p in group["params"]]


def with_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """Names of the tensors that the optimizer keeps something of: those trained at any time."""
    return [name for name, p in model.named_parameters() if optimizer.state.get(p)]


def require_order(saved: Mapping[str, Any], engine: AdaptiveBackprop) -> None:
    """Raise ValueError if the optimizer's tensors are not those its state was saved for."""
    if saved["optimizer_tensors"] != optimizer_tensors(engine.model, engine.optimizer):
        raise ValueError(
            "the optimizer holds other tensors, or in another order, than the one saved: build its "
            "param groups as in the first run"
        )


def _files(folder: Path) -> Iterable[Path]:
    own = (SEAL, f"{SEAL}.part")
    return sorted(p for p in folder.rglob("*") if p.is_file() and p.name not in own)


def _versions() -> dict[str, str]:
    """Of a source tree that is not installed there is none."""
    found = {}
    for name in ("greentrainer", "torch", "transformers"):
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
