"""What processes that train together send one another, by volume, and what each has to hold.

Rings, as NCCL makes them: of `n` processes each sends `(n - 1) / n` of what is gathered or reduced
and scattered, and twice that of what is reduced for all.  DDP exchanges the gradients of what is
trained, once an optimizer step.  FSDP2 gathers weights before they are used, of every block in the
forward pass and of those that gradient passes in the backward pass, for each batch; and it scatters
the gradients of what is trained.  Of frozen tensors no gradient travels.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from greentrainer.cost.memory import Memory

PREFETCHED = 2
"""Blocks whose weights are whole at a time: the one at work, and the next."""


@dataclass(frozen=True)
class Sizes:
    """Bytes of weights: of each block, by its number from the input, and of all else together."""

    blocks: Mapping[int, int]
    outside: int

    @property
    def whole(self) -> int:
        """Of the model."""
        return sum(self.blocks.values()) + self.outside


def ring(processes: int) -> float:
    """What each sends of something that is gathered, or reduced and scattered."""
    return (processes - 1) / processes


def sent_by_replicas(trained: int, processes: int) -> float:
    """Bytes that each sends in an optimizer step.  trained: bytes of gradients."""
    return 2 * ring(processes) * trained


def sent_by_shards(
    sizes: Sizes, depth: int, trained: int, processes: int, batches: int = 1
) -> float:
    """Bytes that each sends in an optimizer step of so many batches.

    depth: blocks that gradient passes, from the loss.  What lies outside of the blocks stays whole
    between the two passes.
    """
    passed = sum(size for number, size in sizes.blocks.items() if number >= _first(sizes, depth))
    return ring(processes) * batches * (sizes.whole + passed + trained)


def held_by_shard(memory: Memory, sizes: Sizes, processes: int) -> Memory:
    """A step's memory in each of the processes, of that in one which holds all."""
    largest = max(sizes.blocks.values(), default=0)
    whole = min(sizes.whole, PREFETCHED * largest + sizes.outside)
    return replace(
        memory,
        weights=memory.weights // processes,
        gradients=memory.gradients // processes,
        optimizer=memory.optimizer // processes,
        activations=memory.activations + whole,
    )


def _first(sizes: Sizes, depth: int) -> int:
    return 1 + max(sizes.blocks, default=-1) - depth
