"""Holding examples out by a hash of their prompts."""

import hashlib
from array import array
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from greentrainer.tasks.base import Example
from greentrainer.tasks.stored import Chosen


def cut(
    examples: Sequence[Example], shares: Mapping[str, float], seed: int, where: str
) -> dict[str, Sequence[Example]]:
    """Train, and a split for each of `shares`: the share of the distinct prompts that it gets.

    Prompts stand in the order of a hash of seed and prompt, and the splits take theirs from its
    head.  So equal prompts are never on two sides, rows added later move few others, and no side is
    empty.  Chats that learn at an earlier turn what is asked of one held out are left out of train.
    Within a split the order is that of `examples`.

    Raises ValueError, beginning with `where`, for fewer prompts than sides.
    """
    ranks, earlier = array("Q"), list[tuple[int, int, int]]()
    for row, one in enumerate(examples):
        *others, key = one.keys
        ranks.extend(_rank(seed, key))
        earlier += [(row, *_rank(seed, other)) for other in others]
    first, second = np.asarray(ranks, np.uint64).reshape(-1, 2).T
    order = np.lexsort((second, first))
    new = np.ones(len(order), bool)
    new[1:] = _differ(first[order]) | _differ(second[order])
    prompts = int(new.sum())
    if prompts <= len(shares):
        have = "one prompt only" if prompts == 1 else f"{prompts} prompts only"
        raise ValueError(f"{where} has {have}, none can be held out: add rows or a test file")
    ends = [*np.flatnonzero(new).tolist(), len(order)]
    rows: dict[str, Any] = {}
    taken = 0
    for later, (split, share) in reversed(list(enumerate(shares.items()))):
        free = prompts - taken - 1 - later  # one for train and each split to come
        count = min(max(1, round(share * prompts)), free)
        rows[split] = np.sort(order[ends[taken] : ends[taken + count]])
        taken += count
    left = np.sort(order[ends[taken] :])
    if earlier:
        out = order[: ends[taken]]
        held = set(zip(first[out].tolist(), second[out].tolist(), strict=True))
        known = {row for row, *rank in earlier if tuple(rank) in held}
        left = np.array([row for row in left.tolist() if row not in known], np.int64)
        left = left if len(left) else np.sort(order[ends[taken] :])
    parts = {"train": left} | {split: rows[split] for split in shares}
    return {split: Chosen(examples, places) for split, places in parts.items()}


def apart(examples: Sequence[Example], held: Iterable[Example]) -> Sequence[Example]:
    """Those that do not learn what one that is held out is asked, at any turn."""
    keys = {one.key for one in held}
    return apart_from(examples, keys)


def apart_from(examples: Sequence[Example], keys: Iterable[str]) -> Sequence[Example]:
    """Those that do not learn, at any turn, what one with such a `key` is asked."""
    known = frozenset(keys)
    return Chosen(examples, [i for i, one in enumerate(examples) if known.isdisjoint(one.keys)])


def _differ(sorted_: Any) -> Any:
    """Where a value differs from the one before it."""
    return sorted_[1:] != sorted_[:-1]


def _rank(seed: int, prompt: str) -> tuple[int, int]:
    digest = hashlib.sha256(f"{seed}:{prompt}".encode()).digest()
    return int.from_bytes(digest[:8]), int.from_bytes(digest[8:16])
