"""What each size of memory buys: how a run keeps within it, and how much of the model it trains."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from torch import nn

from greentrainer.config import RunConfig
from greentrainer.forward import LabelledHead, SplitForward
from greentrainer.methods import METHODS
from greentrainer.run import Fitting
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
    """For each size: updates and tail of the first way that fits, and the share trained.

    Sizes beyond the first that has room for everything are left out; "trained" is 0 where nothing
    can be trained.
    """
    weights = sum(t.numel() * t.element_size() for t in [*network.parameters(), *network.buffers()])
    found: list[dict[str, Any]] = []
    fitting = Fitting(config, METHODS["green"], network, batch, 0, weights, short)
    for size in SIZES:
        fitting.limit = size * GIGA
        bought = fitting.bought()
        way, share = bought or (None, 0.0)
        found.append({
            "gigabytes": size,
            "updates": way and way.updates,
            "tail": way and way.tail,
            "rows": way and way.rows,
            "recompute": way is not None and way.recompute,
            "trained": share,
        })  # fmt: skip
        if way is not None and way.as_asked and share == 1:
            break
    return found
