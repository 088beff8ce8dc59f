"""Holding examples out by a hash of their prompts."""

import hashlib
from collections.abc import Mapping, Sequence

from greentrainer.tasks.base import Example, apart


def cut(
    examples: Sequence[Example], shares: Mapping[str, float], seed: int, where: str
) -> dict[str, list[Example]]:
    """Train, and a split for each of `shares`: the share of the distinct prompts that it gets.

    Prompts stand in the order of a hash of seed and prompt, and the splits take theirs from its
    head.  So equal prompts are never on two sides, rows added later move few others, and no side is
    empty.  Chats that learn at an earlier turn what is asked of one held out are left out of train.
    Within a split the order is that of `examples`.

    Raises ValueError, beginning with `where`, for fewer prompts than sides.
    """
    prompts = sorted({one.key for one in examples}, key=lambda prompt: _rank(seed, prompt))
    if len(prompts) <= len(shares):
        have = "one prompt only" if len(prompts) == 1 else f"{len(prompts)} prompts only"
        raise ValueError(f"{where} has {have}, none can be held out: add rows or a test file")
    side: dict[str, str] = {}
    for later, (split, share) in reversed(list(enumerate(shares.items()))):
        free = len(prompts) - len(side) - 1 - later  # one for train and each split to come
        count = min(max(1, round(share * len(prompts))), free)
        side |= dict.fromkeys(prompts[len(side) : len(side) + count], split)
    parts: dict[str, list[Example]] = {split: [] for split in ("train", *shares)}
    for example in examples:
        parts[side.get(example.key, "train")].append(example)
    held = [one for split in shares for one in parts[split]]
    left = apart(parts["train"], held)
    return parts | {"train": left} if left else parts


def _rank(seed: int, prompt: str) -> bytes:
    return hashlib.sha256(f"{seed}:{prompt}".encode()).digest()
