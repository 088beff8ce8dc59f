"""Where the rows of a batch are cut in two, and the batch in its two parts.

Told on the host; of what lies on a device only the parts themselves are made there.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from greentrainer.forward.host import to_device
from greentrainer.forward.packed import Segments, opened
from greentrainer.forward.parts import reads
from greentrainer.types import IGNORED, Part, rounded

COARSE, FINE = 32, 8
"""Multiples that prefixes and tails are padded to where lengths are coarse: then what is kept of an
example is the same to the bit, whatever rows it came with."""

Parts = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Cut:
    """Where a batch is cut.  Its tensors are on the host.

    begin, start, end: (B,), the first and one after the last position of each row that counts, and
    between them the first of its tail.  prefix, tail: lengths of both parts, padding included.
    read: (B, prefix), columns of the positions that are read of the prefix, -1 for padding; all of
        them when None.  padded: whether there is padding in either part, or anything is masked.
    segments: of a packed batch its examples, which are the rows that are cut.
    """

    begin: torch.Tensor
    start: torch.Tensor
    end: torch.Tensor
    prefix: int
    tail: int
    read: torch.Tensor | None = None
    padded: bool = True
    segments: Segments | None = None

    @property
    def unread(self) -> int:
        """Positions that are not read, without padding."""
        if self.read is None:
            return 0
        return int((self.start - self.begin).sum() - (self.read >= 0).sum())

    @property
    def tail_tokens(self) -> int:
        """Positions in the tails, without padding."""
        return int((self.end - self.start).sum())

    def columns(self) -> torch.Tensor:
        """(2, B, prefix + tail): columns of both parts, and those that their numbers are taken of.

        -1 for padding.  Of what is not read no gap is left in the numbers.
        """
        after = between(self.start, self.end, self.tail, self.start)
        if self.read is None:
            before = between(self.begin, self.start, self.prefix, self.start - self.prefix)
            found = torch.cat([before, after], 1)
            return torch.stack([found, found])
        real = self.read >= 0
        rank = self.begin[:, None] + real.cumsum(1) - 1
        unread = (self.start - self.begin)[:, None] - real.sum(1, keepdim=True)
        shifted = torch.where(after >= 0, after - unread, -1)
        return torch.stack(
            [torch.cat([self.read, after], 1), torch.cat([rank.where(real, -1), shifted], 1)]
        )


def between(
    begin: torch.Tensor, end: torch.Tensor, count: int, first: torch.Tensor
) -> torch.Tensor:
    """(B, count): columns from `first` on, -1 where they do not lie between the others."""
    columns = first[:, None] + torch.arange(count, device=first.device)
    return columns.where((columns >= begin[:, None]) & (columns < end[:, None]), -1)


@dataclass(frozen=True)
class Places:
    """Columns taken of each row.  columns, real: (B, N), and whether there is anything at one."""

    columns: torch.Tensor
    real: torch.Tensor

    def of(self, value: torch.Tensor, blank: int = 0) -> torch.Tensor:
        """(B, N, ...) of a value (B, T, ...)."""
        index = self.columns.view(*self.columns.shape, *[1] * (value.dim() - 2))
        found = value.gather(1, index.expand(*self.columns.shape, *value.shape[2:]))
        return found.masked_fill(~self.real.view_as(index), blank)

    def halves(self, first: int) -> "tuple[Places, Places]":
        """The first so many columns, and the others."""
        columns, real = self.columns, self.real
        before = Places(columns[:, :first], real[:, :first])
        return before, Places(columns[:, first:], real[:, first:])


def cut(
    labels: torch.Tensor,
    mask: torch.Tensor,
    tail: int,
    coarse: bool = False,
    part: Part | None = None,
    ids: torch.Tensor | None = None,
) -> Cut:
    """The cut with `tail` positions before the first that predicts a label.

    labels, mask, ids: (B, T).  coarse: pad to as few lengths as can be.  part: of the prefix that
    is read.  Raises ValueError for a mask with gaps.
    """
    length = labels.shape[1]
    at = torch.arange(length, device=labels.device)
    real = mask.bool()
    begin = torch.where(real, at, length).amin(1)
    end = torch.where(real, at + 1, 0).amax(1)
    if not torch.equal(real.sum(1), (end - begin).clamp(min=0)):
        raise ValueError("the mask of a row has a gap: such a batch cannot be split")
    labelled = labels[:, 1:] != IGNORED
    first = torch.where(labelled, at[1:], length).amin(1)  # a row without any gives one position
    last = torch.where(labelled, at[1:] + 1, 0).amax(1)  # a label may lie where the mask is 0
    begin, end = torch.minimum(begin, first - 1).clamp(min=0), torch.maximum(end, last)
    start = torch.maximum(torch.minimum(first - 1 - tail, end - 1), begin)
    least, finest = (COARSE, FINE) if coarse else (1, 1)
    before, after = start - begin, end - start
    if not coarse and _even(before) and _even(after) and part is None:  # a mask would be slower
        prefix, rest = int(before[0]), int(after[0])
    else:
        prefix, rest = _length(before, least), _length(after, finest)
    hidden = (at >= begin[:, None]) & (at < end[:, None]) & ~real
    if part is None:
        made = Cut(begin, start, end, prefix, rest)
    else:
        read = reads(part, begin, start, ids, labels)
        prefix = _length(read.sum(1), least)
        made = Cut(begin, start, end, prefix, rest, _columns(read, prefix))
    blank = bool((made.columns()[0] < 0).any())
    return replace(made, padded=blank or bool(hidden.any()))


def _columns(read: torch.Tensor, width: int) -> torch.Tensor:
    """Columns where `read` (B, T) is true, (B, width), with -1 before them."""
    at = torch.arange(read.shape[1], device=read.device).expand_as(read)
    place = read.cumsum(1) - 1 + width - read.sum(1, keepdim=True)
    found = at.new_full((len(read), width + 1), -1)
    return found.scatter(1, place.where(read, width), at.where(read, -1))[:, :width]


def _length(lengths: torch.Tensor, least: int) -> int:
    """What the longest is padded to."""
    return rounded(int(lengths.max()), least=least)


def _even(lengths: torch.Tensor) -> bool:
    """Whether all are the same."""
    return bool((lengths == lengths[0]).all())


@dataclass(frozen=True)
class Parted:
    """A batch as `{"prefix": ..., "tail": ...}`, and where the positions of both lie in it.

    The tail's mask is that of the tail alone.  mask: of both, with which the tail reads the
    prefix's keys and values.
    """

    parts: Parts
    before: Places
    after: Places
    mask: torch.Tensor


def parted(batch: Mapping[str, Any], where: Cut) -> Parted:
    """The batch in two, unpacked first if it is packed."""
    batch = opened(batch, where.segments)
    labels, first = batch["labels"], where.prefix
    columns, numbers = _placed(where.columns(), labels.device)
    size, mask = tuple(labels.shape), batch.get("attention_mask")
    usable = isinstance(mask, torch.Tensor) and tuple(mask.shape) == size
    given = {name: value for name, value in batch.items() if value is not None}
    given.setdefault("position_ids", None)
    given["attention_mask"] = mask if usable else None
    parts: Parts = {"prefix": {}, "tail": {}}
    masked = columns.real
    for name, value in given.items():
        if name == "position_ids" and value is None:
            both = numbers.columns
        elif name == "attention_mask" and value is None:
            both = columns.real.to(labels.dtype)
        elif isinstance(value, torch.Tensor) and tuple(value.shape[:2]) == size:
            own = numbers if name == "position_ids" else columns
            both = own.of(value, IGNORED if name == "labels" else 0)
        else:
            parts["prefix"][name] = parts["tail"][name] = value
            continue
        parts["prefix"][name] = both[:, :first]
        parts["tail"][name] = both[:, first:]
        masked = both if name == "attention_mask" else masked
    del parts["prefix"]["labels"]
    return Parted(parts, *columns.halves(first), masked)


def _placed(columns: torch.Tensor, device: torch.device) -> tuple[Places, Places]:
    """Columns on the device, and those of numbers."""
    there = to_device(columns, device)
    real, found = there >= 0, there.clamp(min=0)
    return Places(found[0], real[0]), Places(found[1], real[1])
