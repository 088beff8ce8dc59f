"""The examples of a batch: how each is known again, and where its tokens lie."""

import hashlib
from collections.abc import Mapping
from copy import copy
from typing import Any

import torch

from greentrainer.types import IGNORED


class Unknown(Exception):
    """A model or a batch whose forward pass cannot be cut."""


class Rows:
    """The examples of a batch: how each is known again, and where its tokens lie.

    batch: the model's arguments but its targets.  labels: of a decoder; a position that predicts
    one counts as real, whatever the mask says.

    Raises Unknown for a batch without token ids or embeddings, or with an argument that cannot be
    told from another.
    """

    def __init__(self, batch: Mapping[str, Any], labels: torch.Tensor | None = None) -> None:
        given = batch.get("input_ids", batch.get("inputs_embeds"))
        if not isinstance(given, torch.Tensor) or given.dim() < 2:
            raise Unknown("a batch has neither input_ids nor inputs_embeds")
        self.batch, self.device = dict(batch), given.device
        self.size = rows, columns = (given.shape[0], given.shape[1])
        mask = batch.get("attention_mask")
        if isinstance(mask, torch.Tensor) and tuple(mask.shape) == self.size:
            self.real = mask.bool().cpu()
            if labels is not None and tuple(labels.shape) == self.size:
                self.real = self.real.clone()
                self.real[:, :-1] |= (labels[:, 1:] != IGNORED).cpu()
        else:
            self.real = torch.ones(rows, columns, dtype=torch.bool)
        self.lengths: list[int] = self.real.sum(1).tolist()
        self.keys = self._names()

    def part(self, numbers: list[int]) -> "Rows":
        """Some of the rows."""
        part = copy(self)
        rows = self.size[0]
        part.batch = {k: _rows_of(v, rows, numbers) for k, v in self.batch.items()}
        part.size = (len(numbers), self.size[1])
        part.real = self.real[numbers]
        part.lengths = [self.lengths[i] for i in numbers]
        part.keys = [self.keys[i] for i in numbers]
        return part

    def _names(self) -> list[bytes]:
        given = sorted((k, v.detach().cpu()) for k, v in self.batch.items() if _is_tensor(v))
        plain = sorted((k, _told(v)) for k, v in self.batch.items() if not _is_tensor(v))
        shared = hashlib.blake2b(repr(plain).encode(), digest_size=16)
        names = []
        for row in range(self.size[0]):
            real = self.real[row]
            digest = shared.copy()
            digest.update(_bytes_of(real.nonzero()))
            for name, value in given:
                if value.dim() > 0 and value.shape[0] == self.size[0]:
                    mine = value[row]
                    if tuple(value.shape[:2]) == self.size:
                        mine = mine[real]
                else:
                    mine = value
                digest.update(f"{name} {mine.dtype} {tuple(mine.shape)}".encode())
                digest.update(_bytes_of(mine))
            names.append(digest.digest())
        return names

    def split(self, hidden: torch.Tensor) -> list[torch.Tensor]:
        """The activations of each row without those of padding.  hidden: (B, T, D)."""
        if hidden.dim() != 3 or tuple(hidden.shape[:2]) != self.size:
            raise Unknown(f"activations have the shape {tuple(hidden.shape)}")
        real = hidden.flatten(0, 1).index_select(0, self._places(hidden.device))
        return list(real.split(self.lengths))

    def joined(self, parts: list[torch.Tensor]) -> torch.Tensor:
        """(B, T, D) from what `split` gave; zeros at padding, which nothing looks at."""
        width = parts[0].shape[-1]
        whole = parts[0].new_zeros(self.size[0] * self.size[1], width)
        whole.index_copy_(0, self._places(whole.device), torch.cat(parts))
        return whole.view(*self.size, width)

    def _places(self, device: torch.device) -> torch.Tensor:
        """Where real positions lie if all rows are put into one; found without asking the GPU."""
        return self.real.flatten().nonzero()[:, 0].to(device, non_blocking=True)


def _rows_of(value: Any, rows: int, numbers: list[int]) -> Any:
    by_row = _is_tensor(value) and value.dim() > 0 and value.shape[0] == rows
    return value[numbers] if by_row else value


def _told(value: Any) -> Any:
    """A value by which arguments can be told apart.  Raises Unknown if it is no plain one."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        return [_told(one) for one in value]
    raise Unknown(f"an argument is of type {type(value).__name__}")


def _bytes_of(value: torch.Tensor) -> bytes:
    data: bytes = value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return data


def _is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor)
