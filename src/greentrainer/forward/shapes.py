"""Sizes of batches: what a batch is known by, and batches that differ in nothing else."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.utils._pytree import keystr, tree_map_only, tree_map_with_path

from greentrainer.cost import ROOM, SMALLEST
from greentrainer.forward.cut import Cut
from greentrainer.forward.host import on_host
from greentrainer.forward.packed import opened, segments_of
from greentrainer.forward.split import SplitForward
from greentrainer.types import IGNORED, Batch

Signature = tuple[tuple[str, tuple[int, ...]], ...]
"""The path to each tensor and its shape; a flag is part of its path and has none."""


class NoneAlike(ValueError):
    """There are no batches alike to this one that could be made."""


class Alike:
    """Batches that differ from one in its sizes: rows and lengths, its tensors' first dimensions.

    paired: rows belong together by two, as what is preferred and what is not.
    times: of each size, what it is multiplied by: two where they are paired.
    sums: pairs of sizes that make another one.  less: which sizes are lengths, where one position
        less may be another.
    """

    def __init__(self, batch: Batch, split: SplitForward | None, paired: bool = False) -> None:
        self.where = split.cut(batch) if split else None
        self.batch = batch = opened(batch, self.where.segments if self.where else None)
        found = [leaf for _, leaf in tensors(batch)]
        rows = [int(t.shape[0]) for t in found if t.dim() and t.shape[0] > 1]
        lengths = [int(t.shape[1]) for t in found if t.dim() > 1 and t.shape[1] > 1]
        self.rows = dict.fromkeys(rows)
        self.sizes = list(dict.fromkeys([*rows, *lengths]))
        self.sums: list[tuple[int, int]] = []
        self.less = [i for i, size in enumerate(self.sizes) if size not in self.rows]
        if self.where is not None:
            if len(self.rows) != 1:
                raise NoneAlike("the rows of a split batch cannot be told")
            self.sizes = [rows[0], self.where.prefix, self.where.tail]
            self.sums, self.less = [(1, 2)], []
        if paired and (self.where is not None or any(size % 2 for size in self.rows)):
            raise NoneAlike("rows do not come in pairs")
        self.times = [1 + (paired and size in self.rows) for size in self.sizes]

    def room(self, share: float) -> list[int]:
        """Its number of rows, and lengths so many times its own.

        First both parts of a split batch may be as long as the whole.
        """
        if self.where is not None:
            rows, *parts = self.sizes
            width = self.batch["labels"].shape[1]
            return [rows, *(math.ceil(share * (width if share == ROOM[0] else n)) for n in parts)]
        found = [math.ceil(size if size in self.rows else share * size) for size in self.sizes]
        return [size // times for size, times in zip(found, self.times, strict=True)]

    def least(self) -> tuple[int, ...]:
        """Very small ones; lengths in their order, one less than which is no single one either."""
        ranks = sorted(self.less, key=self.sizes.__getitem__)
        more = {i: rank for rank, i in enumerate(ranks, 1)}
        return tuple(SMALLEST + more.get(i, 0) for i in range(len(self.sizes)))

    def made(self, sizes: Sequence[int]) -> tuple[Batch, Cut | None]:
        """A batch of such sizes and its cut: of one without a cut what it holds, stretched."""
        if self.where is None:
            pairs = zip(self.sizes, self.times, sizes, strict=True)
            return self._of({size: times * new for size, times, new in pairs}), None
        rows, prefix, tail = sizes
        width = self.batch["labels"].shape[1]
        batch = self._of({self.sizes[0]: rows}, {width: prefix + tail})
        none = torch.zeros(rows, dtype=torch.long)  # on the host, as all of a cut
        return batch, Cut(none, none, none, prefix, tail)

    def _of(self, instead: Mapping[int, int], columns: Mapping[int, int] | None = None) -> Batch:
        second = instead if columns is None else columns

        def blank(tensor: torch.Tensor) -> torch.Tensor:
            first = [instead.get(size, size) for size in tensor.shape[:1]]
            then = [second.get(size, size) for size in tensor.shape[1:2]]
            if columns is not None or tensor.is_meta:
                return tensor.new_zeros([*first, *then, *tensor.shape[2:]])
            for dimension, size in enumerate([*first, *then]):
                old = tensor.shape[dimension]
                places = torch.arange(size, device=tensor.device) * old // max(1, size)
                tensor = tensor.index_select(dimension, places)
            return tensor

        return tree_map_only(torch.Tensor, blank, self.batch)


MULTIPLE = 100
"""In a template, what is added to a size's number for each time more that it is taken."""


def template_of(
    shapes: Signature, primes: Mapping[int, int], times: Sequence[int] = ()
) -> Signature:
    """A signature with sizes as -1, -2, ... in place of what they were traced at.

    times: for each size so many times as much, too, `MULTIPLE` further down for each time more.
    """
    places = {size: -1 - number for size, number in primes.items()}
    places |= {
        times[number] * size: -1 - number - MULTIPLE * (times[number] - 1)
        for size, number in primes.items()
        if number < len(times)
    }
    return tuple((path, tuple(places.get(size, size) for size in shape)) for path, shape in shapes)


def matched(template: Signature, wanted: Signature) -> tuple[int, ...] | None:
    """The sizes that make a template this signature, if any do."""
    if len(template) != len(wanted):
        return None
    sizes: dict[int, int] = {}
    for (path, pattern), (other, shape) in zip(template, wanted, strict=True):
        if path != other or len(pattern) != len(shape):
            return None
        for place, size in zip(pattern, shape, strict=True):
            more, number = divmod(-1 - place, MULTIPLE) if place < 0 else (0, 0)
            known = place
            if place < 0:
                if size % (more + 1):
                    return None
                known = sizes.setdefault(-1 - number, size // (more + 1)) * (more + 1)
            if known != size:
                return None
    return tuple(sizes[place] for place in sorted(sizes, reverse=True))


def signature(value: Any) -> Signature:
    """The shapes of all tensors in nested mappings and sequences, and the flags beside them.

    A list of texts beside tensors is what the rows are made of, kept for people, and no flag.
    """
    found, told = [], any(True for _ in tensors(value))
    for path, leaf in leaves(value, texts=not told):
        if isinstance(leaf, torch.Tensor):
            found.append((path, tuple(leaf.shape)))
        elif isinstance(leaf, (bool, str)):
            found.append((f"{path}={leaf}", ()))
    return tuple(sorted(found))


def labelled(value: Any) -> int:
    """How many positions have a label, the first of each row left out: nothing comes before it."""
    counts = [
        int((on_host(tensor)[..., 1:] != IGNORED).sum())
        for path, tensor in tensors(value)
        if path.endswith(".labels")
    ]
    return sum(counts)


def with_labels(batch: Batch, count: int) -> Batch:
    """The batch with exactly so many labels, the first of each row left out.

    Raises NoneAlike where there is no room for them.
    """
    left = [count]

    def filled(path: Any, tensor: Any) -> Any:
        if not keystr(path).endswith("['labels']"):
            return tensor
        labels = torch.full_like(tensor, IGNORED)
        rest = labels[..., 1:].reshape(-1)
        some = min(left[0], rest.numel())
        rest[:some] = 0
        labels[..., 1:] = rest.view(labels[..., 1:].shape)
        left[0] -= some
        return labels

    made = tree_map_with_path(filled, batch)
    if left[0]:
        raise NoneAlike(f"no room for {count} labels")
    return made


def tensors(value: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """All tensors in nested mappings and sequences, each with the path to it."""
    return ((path, leaf) for path, leaf in leaves(value) if isinstance(leaf, torch.Tensor))


def leaves(value: Any, path: str = "", texts: bool = True) -> Iterator[tuple[str, Any]]:
    """All that is no mapping or sequence in nested ones, each with the path to it.

    texts: lists of nothing but texts too.
    """
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from leaves(item, f"{path}.{key}", texts)
    elif isinstance(value, list) and not texts and all(isinstance(one, str) for one in value):
        return
    elif isinstance(value, (list, tuple)):
        for position, item in enumerate(value):
            yield from leaves(item, f"{path}.{position}", texts)
    else:
        yield path, value


def tokens_of(batch: Batch) -> tuple[int, int]:
    """Real and padded tokens of a batch with an attention mask or token ids; else 0.

    Of packed rows the real ones are those of examples with labels.
    """
    if isinstance(batch, Mapping):
        mask, ids = batch.get("attention_mask"), batch.get("input_ids")
        if isinstance(mask, torch.Tensor):
            return int(on_host(mask).sum()), mask.numel()
        if isinstance(ids, torch.Tensor):
            try:
                segments = segments_of(batch)
            except ValueError:
                segments = None
            return segments.tokens if segments else ids.numel(), ids.numel()
    return 0, 0
