"""What each size of memory buys: how a run keeps within it, and how much of the model it trains."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from greentrainer.config import RunConfig
from greentrainer.forward import LabelledHead, SplitForward
from greentrainer.methods import METHODS
from greentrainer.run import Fitting, state_ratio, weights_of
from greentrainer.types import Batch, Tail

SIZES = (8, 12, 16, 24, 48, 80)
"""Gigabytes of the cards that there are."""
GIGA = 10**9


@dataclass(frozen=True)
class Sketched:
    """What a pass leaves out of a model that is not there: nothing of it can be tried."""

    split: SplitForward | None
    head: LabelledHead | None

    @contextmanager
    def at(self, tail: Tail) -> Iterator[None]:
        """In here gradient passes through so many positions of each prompt."""
        with self.split.at(tail) if self.split is not None else nullcontext():
            yield


def rooms(
    config: RunConfig, network: nn.Module, batch: Batch, short: Sketched
) -> list[dict[str, Any]]:
    """For each size: what weights are held in, how steps of the first way that fits are made, and
    the share trained.

    Sizes beyond the first that has room for everything are left out; "trained" is 0 where nothing
    can be trained.
    """
    found: list[dict[str, Any]] = []
    fittings: dict[torch.dtype, Fitting] = {}
    count = sum(parameter.numel() for parameter in network.parameters())
    before = next(network.parameters()).dtype
    for size in SIZES:
        asked = config.model_copy(update={"memory": size * GIGA})
        dtype = weights_of(asked, lambda: count)
        if dtype not in fittings:  # from small to large: half precision first
            network.to(dtype)
            held = sum(t.nbytes for t in [*network.parameters(), *network.buffers()])
            ratio = state_ratio(config, dtype, torch.device("cpu"))
            fittings[dtype] = Fitting(
                config, METHODS["green"], network, batch, 0, held, short, moments=ratio
            )
        fitting = fittings[dtype]
        fitting.limit = size * GIGA
        bought = fitting.bought()
        way, share = bought or (None, 0.0)
        found.append({
            "gigabytes": size,
            "weights": str(dtype).removeprefix("torch."),
            "updates": way and way.updates,
            "tail": way and way.tail,
            "rows": way and way.rows,
            "recompute": way is not None and way.recompute,
            "trained": share,
        })  # fmt: skip
        if way is not None and way.as_asked and share == 1 and dtype == before:
            break
    network.to(before)
    return found
