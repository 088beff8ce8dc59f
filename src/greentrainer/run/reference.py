"""What plain full fine-tuning of a run's data would execute: the yardstick of every bill.

The same batches in the same order, every tensor of the model as it was loaded trained at every
step: whatever adapters are put into it, and however early a run is to end.  Where the run packs its
batches, they are packed here too: full fine-tuning with the same keys would pack them.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from math import inf

import torch
from accelerate.data_loader import BatchSamplerShard
from torch import nn
from torch.utils.data import BatchSampler, Sampler

from greentrainer.config import RunConfig
from greentrainer.engine import GraphCache
from greentrainer.hf import kept_traces
from greentrainer.methods import METHODS
from greentrainer.select import Blind
from greentrainer.tasks import Encoded, encode
from greentrainer.types import Batch, CostGraph


class EpochOrder(Sampler[int]):
    """Examples in an order set by seed and epoch, those of a batch of like length.

    Short batches come last, so that the boundaries between the others hold.
    """

    def __init__(self, encoded: Sequence[Encoded], batch_size: int, seed: int) -> None:
        self.encoded, self.batch_size, self.seed, self.epoch = encoded, batch_size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the Trainer before each epoch, on resume too."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.encoded)

    def __iter__(self) -> Iterator[int]:
        for group in self.groups():
            yield from group

    def groups(self) -> list[list[int]]:
        """The batches of the epoch."""
        groups = list(encode.batches(self.encoded, self.batch_size, self.seed, self.epoch))
        return sorted(groups, key=lambda rows: len(rows) < self.batch_size)

    def dealt(self, processes: int) -> list[list[list[int]]]:
        """The batches of each process, as accelerate deals them out.

        All get as many, of one size: where rows do not go round, the first come again.
        """
        if processes == 1:
            return [self.groups()]
        batches = BatchSampler(self, self.batch_size, drop_last=False)
        return [list(BatchSamplerShard(batches, processes, rank)) for rank in range(processes)]

    def steps(self, processes: int, accumulate: int) -> list[list[list[int]]]:
        """The batches of each optimizer step of the epoch, of all processes together."""
        rounds = list(zip(*self.dealt(processes), strict=True))
        return [
            [rows for some in rounds[i : i + accumulate] for rows in some]
            for i in range(0, len(rounds), accumulate)
        ]


class Batches:
    """Of the run's first pass, on the model's device."""

    def __init__(
        self,
        config: RunConfig,
        model: nn.Module,
        train: Sequence[Encoded],
        collate: encode.Collator,
    ) -> None:
        self.groups = EpochOrder(train, config.batch_size, config.seed).groups()
        self.train, self.collate = train, collate
        self.device = next(model.parameters()).device

    def first(self, count: int) -> list[Batch]:
        """So many that the run begins with."""
        return [self._made(rows) for rows in self.groups[:count]]

    def largest(self) -> Batch | None:
        """The one with the most positions; None where there is none."""
        return self._made(max(self.groups, key=self._positions)) if self.groups else None

    def _positions(self, rows: list[int]) -> int:
        count, given, asked = self.collate.shape([self.train[i] for i in rows])
        return count * (given + asked)

    def _made(self, rows: list[int]) -> Batch:
        placed: Batch = encode.placed(self.collate([self.train[i] for i in rows]), self.device)
        return placed


def graphs_of(model: nn.Module) -> GraphCache:
    """Cost graphs of a model with everything trained.

    To be read before adapters are put into the model or it is told to recompute activations.
    """
    model.train()
    return GraphCache(model, model.parameters(), None, traces=kept_traces())


def method_flops(
    config: RunConfig, model: nn.Module, train: Sequence[Encoded], collate: encode.Collator
) -> list[int]:
    """FLOPs of each optimizer step that trains what the method says.  model: as it adapts it.

    Blocks that are drawn by lot are those of the first draw.
    """
    selector = METHODS[config.method].selector(model, config)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.train()

    def cost(graph: CostGraph) -> int:
        if not isinstance(selector, Blind):
            return graph.full_backward_flops + graph.forward_flops
        return graph.forward_flops + selector.choose(graph, inf, 0).backward_flops

    return step_flops(
        config, GraphCache(model, trained, None, traces=kept_traces()), train, collate, cost
    )


def step_flops(
    config: RunConfig,
    graphs: GraphCache,
    train: Sequence[Encoded],
    collate: encode.Collator,
    cost: Callable[[CostGraph], int] = lambda graph: graph.full_flops,
) -> list[int]:
    """Forward and full backward FLOPs of each optimizer step of the run.

    cost: of a batch with this graph, in place of those.
    """
    order = EpochOrder(train, config.batch_size, config.seed)
    home = next(graphs.model.parameters()).device
    if home.type == "meta":
        home = torch.device("cpu")  # labels are looked at
    known: dict[tuple[int, int, int], int] = {}

    def of(rows: list[int]) -> int:
        some = [train[i] for i in rows]
        shape = collate.shape(some)
        if shape not in known or not graphs.by_shapes:
            known[shape] = cost(graphs.of_batch(encode.placed(collate(some), home)))
        return known[shape]

    steps = []
    for epoch in range(config.epochs):
        order.set_epoch(epoch)
        steps += [sum(map(of, some)) for some in order.steps(config.count, config.accumulate)]
    return steps


def affordable_steps(steps: Sequence[int], rho: float, whole: int | None = None) -> int:
    """How many of the first steps cost at most `rho` of the whole, by default of them all.

    Raises ValueError if that is none.
    """
    spent = list(accumulate(steps))
    limit = rho * (spent[-1] if whole is None else whole)
    count = sum(flops <= limit for flops in spent)
    if not count:
        raise ValueError(
            f"rho {rho:g} of {len(steps)} steps pays for none: train on more examples, or raise rho"
        )
    return count
