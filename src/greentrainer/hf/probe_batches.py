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
    rank, processes: of several processes each gets its part of the same batches.
    flags: what the Trainer calls the model with besides.

    Raises ValueError for a stream that can be read only once.
    """

    def __init__(
        self,
        loader: Any,
        seed: str,
        device: torch.device,
        size: int,
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        self._collate: Any = loader.collate_fn
        sampler: Any = getattr(loader, "batch_sampler", None)
        size = getattr(sampler, "batch_size", None) or getattr(loader, "batch_size", None) or size
        rows: Any = loader.dataset
        self._rows: Sequence[Any] = _head(rows, AHEAD * size) if is_stream(loader) else rows
        self.size = min(int(size), len(self._rows))
        self._seed, self._device = seed, device
        self._rank, self._processes = rank, processes
        self.flags: dict[str, Any] = {}

    def sample(self) -> Batch:
        """The first of all, the same for all processes."""
        return self._made(self._drawn(0, 1)[0])

    def draw(self, step: int, count: int, block: int = 1) -> Iterator[Batch]:
        """`count` batches of random examples, the same for the same step.

        Several processes deal them out in blocks; all get as many, at least `block`.
        """
        each = block * self._processes
        drawn = self._drawn(step, -(-count // each) * each if self._processes > 1 else count)
        for number, rows in enumerate(drawn):
            if number // block % self._processes == self._rank:
                yield self._made(rows)

    def _drawn(self, step: int, count: int) -> list[list[int]]:
        chance = Random(f"{self._seed}/{step}")
        return [chance.sample(range(len(self._rows)), self.size) for _ in range(count)]

    def _made(self, rows: Sequence[int]) -> Batch:
        batch = self._collate([self._rows[i] for i in rows])
        return _placed(batch, self._device, self.flags)


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
