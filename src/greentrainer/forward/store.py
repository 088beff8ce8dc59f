"""Tensors kept by key within a byte budget, in memory or in a file that nobody else can reach.

The file is nameless from its first moment.  So nothing is left behind however the process ends, two
runs may share a folder, and deleting the folder changes nothing.  It is written and read with plain
calls, not mapped into memory: a full disk is then an error to handle instead of a killed process.
"""

import math
import os
import sys
import tempfile
import weakref
from bisect import bisect_left, insort
from collections.abc import Hashable
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import IO, Any

import psutil
import torch

SHARE_OF_FREE = 0.25
"""Of the free memory or disk: the default budget."""
SIDE_BY_SIDE = "GREENTRAINER_SIDE_BY_SIDE"
"""Environment variable: how many runs of a comparison share what is free."""


@dataclass(frozen=True)
class Held:
    """One tensor kept.

    rank: FLOPs that it spares each time for each of its bytes, and a number of its own.
    offset: its place in the file.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    size: int
    rank: tuple[float, int]
    offset: int = 0


class Store:
    """Keeps tensors until their bytes come to `budget`; then those of most worth a byte stay.

    budget: bytes; by default `SHARE_OF_FREE` of what is free.
    folder: where the file goes; None keeps the tensors in memory.

    Raises ValueError if the folder cannot be written to.
    """

    def __init__(self, budget: int | None = None, folder: Path | None = None) -> None:
        self._held: dict[Hashable, Held] = {}
        self._tensors: dict[Hashable, torch.Tensor] = {}
        self._ranks: list[tuple[float, int]] = []
        self._keys: dict[int, Hashable] = {}
        self._numbers = count()
        self._file: IO[bytes] | None = None
        self._gaps: list[tuple[int, int]] = []
        self._end = 0
        self.bytes = 0
        self.full = False
        if folder is not None:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115
                weakref.finalize(self, self._file.close)
            except OSError as error:
                raise ValueError(
                    f"cannot keep activations in {folder}: {error.strerror}; name another folder, "
                    "or keep them in memory"
                ) from None
        self.budget = budget if budget is not None else int(SHARE_OF_FREE * _free(folder))

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._held

    def put(self, key: Hashable, tensor: torch.Tensor, worth: float) -> bool:
        """Keep a copy of a tensor in the place of one with this key; whether there was room."""
        self.discard(key)
        data = tensor.detach().cpu().contiguous()
        size = data.numel() * data.element_size()
        rank = (worth / max(1, size), next(self._numbers))
        if not self._make_room(size, rank):
            return False
        held = Held(tuple(data.shape), data.dtype, size, rank, self._place(size))
        if self._file is None:
            self._tensors[key] = data.clone() if data.data_ptr() == tensor.data_ptr() else data
        elif not self._write(data, held):
            return False
        self._held[key] = held
        self._keys[rank[1]] = key
        insort(self._ranks, rank)
        self.bytes += size
        return True

    def get(self, key: Hashable) -> torch.Tensor:
        """The tensor kept under a key.  Raises KeyError if there is none."""
        held = self._held[key]
        if self._file is None:
            return self._tensors[key]
        data = torch.empty(held.shape, dtype=held.dtype)
        view = _bytes_of(data)
        done = 0
        while done < held.size:
            count = os.preadv(self._file.fileno(), [view[done:]], held.offset + done)
            if count == 0:
                raise OSError(f"the file of kept activations ends at {held.offset + done}")
            done += count
        return data

    def discard(self, key: Hashable) -> None:
        """Forget what is kept under a key, if anything is."""
        held = self._held.pop(key, None)
        if held is not None:
            self._tensors.pop(key, None)
            del self._keys[held.rank[1]], self._ranks[bisect_left(self._ranks, held.rank)]
            self.bytes -= held.size
            self._free_place(held)

    def clear(self) -> None:
        """Forget everything."""
        self._held.clear()
        self._tensors.clear()
        self._ranks.clear()
        self._keys.clear()
        self._gaps, self._end, self.bytes, self.full = [], 0, 0, False

    def close(self) -> None:
        """Give memory and disk back."""
        self.clear()
        if self._file is not None:
            self._file.close()

    def _make_room(self, size: int, rank: tuple[float, int]) -> bool:
        """Forget what is worth less a byte than the newcomer, if that makes room."""
        if self.bytes + size <= self.budget:
            return True
        self.full = True
        room, leaving = self.budget - self.bytes, []
        for other in self._ranks:
            if room >= size or other[0] >= rank[0]:
                break
            key = self._keys[other[1]]
            leaving.append(key)
            room += self._held[key].size
        if room < size:
            return False
        for key in leaving:
            self.discard(key)
        return True

    def _write(self, data: torch.Tensor, held: Held) -> bool:
        assert self._file is not None
        view = _bytes_of(data)
        try:
            done = 0
            while done < held.size:
                done += os.pwrite(self._file.fileno(), view[done:], held.offset + done)
        except OSError:  # the disk is full: what is kept so far is all there will be
            self._free_place(held)
            self.full, self.budget = True, self.bytes
            return False
        return True

    def _place(self, size: int) -> int:
        """Where in the file so many bytes go: the first gap that is large enough, or the end."""
        if self._file is None:
            return 0
        for number, (start, length) in enumerate(self._gaps):
            if length >= size:
                self._gaps[number : number + 1] = (
                    [(start + size, length - size)] if length > size else []
                )
                return start
        start, self._end = self._end, self._end + size
        return start

    def _free_place(self, held: Held) -> None:
        """Make a gap of it, one with those beside it."""
        if self._file is None or not held.size:
            return
        start, end = held.offset, held.offset + held.size
        after = bisect_left(self._gaps, (start, 0))
        before = after
        if after < len(self._gaps) and self._gaps[after][0] == end:
            end += self._gaps[after][1]
            after += 1
        if before and sum(self._gaps[before - 1]) == start:
            before -= 1
            start = self._gaps[before][0]
        if end == self._end:
            self._end = start
            self._gaps[before:after] = []
        else:
            self._gaps[before:after] = [(start, end - start)]


def _bytes_of(data: torch.Tensor) -> memoryview:
    flat: Any = data.reshape(-1).view(torch.uint8).numpy()
    return memoryview(flat)


def _free(folder: Path | None) -> int:
    """Bytes that one process of this machine's may count on."""
    counts = (int(os.environ.get(name, "1")) for name in ("LOCAL_WORLD_SIZE", SIDE_BY_SIDE))
    processes = max(1, math.prod(counts))
    if folder is None:
        return min(int(psutil.virtual_memory().available), _container_free()) // processes
    usage: Any = psutil.disk_usage(str(folder))
    return int(usage.free) // processes


def _container_free(root: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes that a container's limit leaves; very many where there is no limit."""
    try:
        limit, used = ((root / f"memory.{name}").read_text().strip() for name in ("max", "current"))
        return max(0, int(limit) - int(used))
    except (OSError, ValueError):  # no control groups, or the limit is "max"
        return sys.maxsize
