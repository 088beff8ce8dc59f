"""Batches to measure importance on, drawn apart from the Trainer's own order: `ProbeBatches`."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from random import Random
from typing import Any

import torch
from torch.utils.data import IterableDataset

from greentrainer.types import Batch

AHEAD = 8
"""Batches at the head of a stream that probes are drawn from."""


class ProbeBatches:
    """Batches of examples that are collated as the Trainer's own are.

    A stream is read anew from its beginning, `AHEAD` batches far: training misses none of them.
    size: examples in a batch, where the loader does not say it.
    flags: what the Trainer calls the model with besides.

    Raises ValueError for a stream that can be read only once.
    """

    def __init__(self, loader: Any, seed: str, device: torch.device, size: int) -> None:
        self._collate: Any = loader.collate_fn
        sampler: Any = getattr(loader, "batch_sampler", None)
        size = getattr(sampler, "batch_size", None) or getattr(loader, "batch_size", None) or size
        rows: Any = loader.dataset
        self._rows: Sequence[Any] = _head(rows, AHEAD * size) if is_stream(loader) else rows
        self._size = min(int(size), len(self._rows))
        self._seed, self._device = seed, device
        self.flags: dict[str, Any] = {}

    def draw(self, step: int, count: int) -> Iterator[Batch]:
        """`count` batches of random examples, the same for the same step."""
        chance = Random(f"{self._seed}/{step}")
        for _ in range(count):
            rows = chance.sample(range(len(self._rows)), self._size)
            batch = self._collate([self._rows[i] for i in rows])
            yield _placed(batch, self._device, self.flags)


def is_stream(loader: Any) -> bool:
    """Whether a loader's examples have no numbers to draw them by."""
    return isinstance(loader.dataset, IterableDataset)


def length_of(loader: Any) -> int | None:
    """Batches in a pass over the data; None for a stream, whose length nobody knows."""
    return None if is_stream(loader) else len(loader)


def _head(stream: Any, count: int) -> list[Any]:
    one = iter(stream)
    if one is iter(stream):
        raise ValueError(
            "this stream can be read only once, and rows that a probe reads would be lost for "
            "training: give a data set whose __iter__ begins anew, such as "
            "datasets.IterableDataset.from_generator"
        )
    rows = list(islice(one, count))
    if not rows:
        raise ValueError("the stream holds no examples")
    return rows


def _placed(batch: Any, device: torch.device, flags: Mapping[str, Any]) -> Batch:
    if not isinstance(batch, Mapping):
        return batch
    there = {k: v.to(device) if hasattr(v, "to") else v for k, v in batch.items()}
    return {**there, **flags}
