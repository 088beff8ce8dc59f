"""What several processes make of a plan: memory of each, and what they send one another."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from greentrainer.config import RunConfig
from greentrainer.cost import Memory, Sizes, held_by_shard, sent_by_replicas, sent_by_shards
from greentrainer.hf import layout


@dataclass(frozen=True)
class Together:
    """Of a share of full fine-tuning, what each process holds at its peak, and sends in a step.

    parallel: ddp or fsdp.  seconds: of sending so much, one after the other; None where nothing is
    known of the wire.
    """

    rho: float
    parallel: str
    memory: int
    sent: float
    seconds: float | None


def sizes_of(network: nn.Module, places: Mapping[str, Mapping[str, Any]]) -> Sizes:
    """Bytes of a model's weights, by block."""
    blocks: dict[int, int] = {}
    outside = 0
    for name, parameter in network.named_parameters():
        number = places[name]["block"]
        if number is None:
            outside += parameter.nbytes
        else:
            blocks[number] = blocks.get(number, 0) + parameter.nbytes
    return Sizes(blocks, outside)


def together(
    config: RunConfig,
    network: nn.Module,
    rows: Sequence[tuple[float, Sequence[str], int, Memory]],
    bandwidth: float | None = None,
) -> list[Together]:
    """For each share, tensors, depth in blocks and memory of one process: those of several.

    bandwidth: bytes that each sends a second.
    """
    count, sizes = config.count, sizes_of(network, layout(network))
    kinds = ("ddp", "fsdp") if config.parallel == "auto" else (config.parallel,)
    weights = {name: parameter.nbytes for name, parameter in network.named_parameters()}
    found = []
    for rho, names, depth, memory in rows:
        trained = sum(weights[name] for name in names)
        for parallel in kinds:
            if parallel == "ddp":  # gradients lie a second time in the buckets they travel in
                own, sent = memory.total + trained, sent_by_replicas(trained, count)
            else:
                own = held_by_shard(memory, sizes, count).total
                sent = sent_by_shards(sizes, depth, trained, count, config.accumulate)
            seconds = sent / bandwidth if bandwidth else None
            found.append(Together(rho, parallel, own, sent, seconds))
    return found
