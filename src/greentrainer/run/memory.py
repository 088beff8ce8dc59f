"""A run within its memory: what is held, what may be, and how the run is changed to keep to that.

How is found in `fitting.py`, and kept in the run's folder, so that a resumed run goes on with it.
"""

import ctypes
import json
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, replace
from typing import Any, Literal

import psutil
import torch
from torch import nn

from greentrainer.config import RunConfig
from greentrainer.forward import ForwardSavings
from greentrainer.methods import Method
from greentrainer.model import Alone, joined, on_this_machine
from greentrainer.records import Entry, write_json
from greentrainer.run.asked import forward_of, may_shorten, positions_of
from greentrainer.run.fitting import Fitting, Way
from greentrainer.types import Batch

KEPT = "memory.json"
M_MMAP_THRESHOLD = -3
RETURNED = 1 << 16
"""Bytes of an allocation from which on the C library gives it back when it is freed."""


def limit_of(asked: int | Literal["auto"], device: torch.device) -> int:
    """Bytes that a run may take."""
    if asked != "auto":
        return int(asked)
    if device.type == "cuda":
        return int(sum(torch.cuda.mem_get_info(device)[:1]) + torch.cuda.memory_reserved(device))
    return int(psutil.virtual_memory().available / on_this_machine() + held_on(device))


def held_on(device: torch.device) -> int:
    """Bytes that are held now: of a GPU those allocated, else those of the process."""
    if device.type == "cuda":
        return int(torch.cuda.memory_allocated(device))
    return int(psutil.Process().memory_info().rss)


def give_back() -> None:
    """Have the C library give freed memory back at once: what is counted is what is held."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, RETURNED)
            ctypes.CDLL(None).malloc_trim(0)


def savings_of(config: RunConfig, method: Method, model: nn.Module, batch: Batch) -> ForwardSavings:
    """What the run will leave out of its passes."""
    options = replace(forward_of(config, method, 0), keep="nothing")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the run says so itself
        positions = "choose" if may_shorten(config, method) else positions_of(config, method)
        return ForwardSavings(model, model, options, positions, batch, None, Alone())


def within(
    config: RunConfig,
    method: Method,
    model: nn.Module,
    batches: Callable[[], tuple[Batch, Sequence[Batch]]],
) -> tuple[RunConfig, Way, list[Entry]]:
    """The configuration as it keeps to its memory, how, and what finding out took.

    Of several processes each has so much, and all go the way of the one that has least.

    Of the model that is to be trained, tensors that do not fit are frozen.  batches: makes the
    largest one of the run, and some of its first, on the model's device.

    Raises ValueError where nothing fits.
    """
    assert config.memory is not None
    place, processes = config.output_dir / KEPT, joined()
    spent: list[Entry] = []
    if config.resume and place.is_file():
        saved = json.loads(place.read_text(encoding="utf-8"))
        names = saved.pop("names")
        way = Way(**saved, names=None if names is None else tuple(names))
    else:
        give_back()
        model.train()
        device = next(model.parameters()).device
        largest, first = batches()
        with closing(savings_of(config, method, model, largest)) as short:
            limit, held = limit_of(config.memory, device), held_on(device)
            limit, held = min(processes.every(limit)), max(processes.every(held))
            fitting = Fitting(config, method, model, largest, limit, held, short)
            with processes.agreed():
                way, spent = fitting.way(first), fitting.spent
            way = processes.first(way)
        if place.parent.is_dir() and processes.rank == 0:
            write_json(place, asdict(way))
    for name, parameter in model.named_parameters():
        if way.names is not None and name not in way.names:
            parameter.requires_grad_(False)
    changed: dict[str, Any] = {"updates": way.updates}
    if way.tail is not None:
        changed["positions"] = way.tail
    return config.model_copy(update=changed), way, spent
