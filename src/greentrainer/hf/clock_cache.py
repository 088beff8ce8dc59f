"""Clocks kept in the cache folder: one for each model, device, number of threads, torch and mode.

mode: what else the time of a pass depends on: size of batches, precision, recomputed activations.
"""

import hashlib
import json
import warnings
from pathlib import Path
from typing import Any

import torch

from greentrainer.budget import Clock, device_name, load_clock
from greentrainer.hf.models import cache_root


def saved_clock(network: Any, device: torch.device, mode: str) -> Clock | None:
    """The clock that was set for such a model, if any; a damaged file is none, and told of.

    network, device, mode: the model, where it computes, and how (precision and the like).
    """
    path = _path(network, device, mode)
    if not path.is_file():
        return None
    try:
        return load_clock(path)
    except ValueError as error:
        warnings.warn(str(error), stacklevel=2)
        return None


def save_clock(clock: Clock, network: Any, device: torch.device, mode: str) -> Path:
    """Keep a clock; returns its file.  network, device, mode: as of `saved_clock`."""
    path = _path(network, device, mode)
    clock.save(path)
    return path


def _path(network: Any, device: torch.device, mode: str) -> Path:
    shapes = {name: list(p.shape) for name, p in network.named_parameters()}
    attention = network.config._attn_implementation
    described = [
        type(network).__name__,
        shapes,
        attention,
        device_name(device),
        mode,
        torch.__version__,
    ]
    digest = hashlib.sha256(json.dumps(described).encode()).hexdigest()
    return cache_root() / "clocks" / f"{digest[:16]}.json"
