"""Rows that hold several examples each: where these lie, and the batch with a row for each.

Such a batch has `position_ids` that begin anew and no mask (transformers finds by them what must
not see what).  A row then has several completions, so it cannot be cut in two; what is cut is the
batch unpacked, one example a row, which has the same loss.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from greentrainer.forward.host import on_host, to_device
from greentrainer.types import IGNORED, Batch

OF_ROWS = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx")
"""What says of packed rows where examples begin, for attention and recurrences."""
SEVERAL = "rows hold several examples each"


@dataclass(frozen=True)
class Segments:
    """Where examples lie in rows.  row, begin, end: (N,), on the host; columns, the last excluded.

    Examples without labels, padding among them, are left out.
    """

    row: torch.Tensor
    begin: torch.Tensor
    end: torch.Tensor

    @property
    def tokens(self) -> int:
        """Positions of all of them."""
        return int((self.end - self.begin).sum())

    def of(self, value: torch.Tensor, blank: int = 0) -> torch.Tensor:
        """(N, L, ...) of a value (B, T, ...), `blank` behind the end of each."""
        places, real = self._places(value.shape[1])
        there = to_device(torch.stack([places, real.to(places)]), value.device)
        found = value.flatten(0, 1).index_select(0, there[0].flatten())
        hidden = (there[1] == 0).view(*real.shape, *[1] * (value.dim() - 2))
        return found.view(*real.shape, *value.shape[2:]).masked_fill(hidden, blank)

    def real(self) -> torch.Tensor:
        """(N, L), whether there is anything of an example."""
        return self._places(1)[1]

    def _places(self, width: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Of each position where it lies if all rows are put into one; and which there are."""
        length = int((self.end - self.begin).max())
        columns = self.begin[:, None] + torch.arange(length)
        real = columns < self.end[:, None]
        last = torch.minimum(columns, self.end[:, None] - 1)
        return self.row[:, None] * width + last, real


def begins_anew(batch: Batch) -> torch.Tensor | None:
    """(B, T), on the host: where examples begin in rows that hold several; None for others."""
    if not isinstance(batch, Mapping) or batch.get("attention_mask") is not None:
        return None
    labels, positions = batch.get("labels"), batch.get("position_ids")
    if not (isinstance(labels, torch.Tensor) and isinstance(positions, torch.Tensor)):
        return None
    fits = positions.dim() == labels.dim() == 2 and positions.shape[1] == labels.shape[1]
    if not fits or positions.is_meta:
        return None
    new = on_host(positions).diff(dim=1, prepend=on_host(positions)[:, :1]) != 1
    new[:, 0] = True
    return new.expand(labels.shape) if bool(new[:, 1:].any()) else None


def segments_of(batch: Batch) -> Segments | None:
    """The examples of a batch whose rows hold several; None for any other batch.

    Raises ValueError where no batch of one example a row has the same loss.
    """
    new = begins_anew(batch)
    if new is None:
        return None
    labelled = on_host(batch["labels"]) != IGNORED
    if bool((labelled & new)[:, 1:].any()):
        raise ValueError("the first position of a packed example has a label")
    _require_rows(batch)
    row, begin = new.nonzero(as_tuple=True)
    width = new.shape[1]
    end = torch.cat([begin[1:], begin.new_tensor([width])])
    end = torch.where(torch.cat([row[1:] != row[:-1], new.new_ones(1)]), width, end)
    before = torch.nn.functional.pad((labelled & ~new).cumsum(1), (1, 0))
    kept = before[row, end] > before[row, begin]
    kept[0] |= not bool(kept.any())
    return Segments(row[kept], begin[kept], end[kept])


def _require_rows(batch: Mapping[str, Any]) -> None:
    """Raise ValueError for a tensor that belongs to rows and not to their positions."""
    size = tuple(batch["labels"].shape)
    for name, value in batch.items():
        if not isinstance(value, torch.Tensor) or name in (*OF_ROWS, "position_ids"):
            continue
        of_rows = value.dim() > 1 or (value.dim() == 1 and size[0] > 1)
        if of_rows and value.shape[0] == size[0] and tuple(value.shape[:2]) != size:
            raise ValueError(f"packed rows come with {name}, which is not of their positions")


def opened(batch: Batch, segments: Segments | None) -> Batch:
    """The batch with a row for each of these examples, padded on the right, and a mask."""
    if segments is None:
        return batch
    size = batch["labels"].shape
    made: dict[str, Any] = {}
    for name, given in batch.items():
        value = given.expand(size) if name == "position_ids" else given
        if isinstance(value, torch.Tensor) and value.shape[:2] == size:
            made[name] = segments.of(value, IGNORED if name == "labels" else 0)
        elif name not in OF_ROWS:
            made[name] = value
    real = segments.real().to(torch.int64)
    return {**made, "attention_mask": to_device(real, batch["labels"].device)}


def unpacked(batch: Batch) -> Batch:
    """The batch with a row for each example where that can be; the batch itself where not."""
    try:
        return opened(batch, segments_of(batch))
    except ValueError:
        return batch
