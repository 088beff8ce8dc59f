"""Clocks kept in the cache folder: one for each model, device, number of threads and precision."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch

from greentrainer.clock import Clock, load_clock
from greentrainer.hf.models import cache_root
from greentrainer.timing import device_name


def saved_clock(network: Any, device: torch.device, bf16: bool) -> Clock | None:
    """The clock that was set for such a model, if any."""
    path = _path(network, device, bf16)
    return load_clock(path) if path.is_file() else None


def save_clock(clock: Clock, network: Any, device: torch.device, bf16: bool) -> Path:
    """Keep a clock; returns its file."""
    path = _path(network, device, bf16)
    clock.save(path)
    return path


def _path(network: Any, device: torch.device, bf16: bool) -> Path:
    shapes = {name: list(p.shape) for name, p in network.named_parameters()}
    described = [type(network).__name__, shapes, device_name(device), bf16]
    digest = hashlib.sha256(json.dumps(described).encode()).hexdigest()
    return cache_root() / "clocks" / f"{digest[:16]}.json"
