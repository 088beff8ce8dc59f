"""Several processes that train one model: what each measures becomes what all decide.

`Alone` is one process.  `Together` is any number that hold the same model, sharded by FSDP2
(`fully_shard`) or as replicas.  `Replicas` are those under `DistributedDataParallel`, which fixes
at its construction which gradients it exchanges: freezing afterwards makes it wait for gradients
that never come, and unfreezing lets the replicas drift apart without a word.  So its reducer is
taken down before anything is frozen or measured, and built anew, in the same object, afterwards.
"""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

DEFAULT_BUCKET = 25
"""Megabytes of a bucket of gradients if nothing else is said; the first is then a smaller one."""


class Alone:
    """One process: everything is agreed already."""

    count = 1
    rank = 0

    def every(self, value: Any) -> list[Any]:
        """What each process has, in the order of their ranks."""
        return [value]

    def mean(self, values: Sequence[float]) -> list[float]:
        """The mean of each value over the processes, in float64."""
        return list(values)

    def first(self, value: Any) -> Any:
        """What the first process has."""
        return value

    @contextmanager
    def changing(self) -> Iterator[None]:
        """In here tensors may be frozen, unfrozen and measured."""
        yield

    def same(self, tensors: Mapping[str, torch.Tensor]) -> bool:
        """Whether all processes hold bit-identical tensors."""
        return True


class Together(Alone):
    """All processes of a group.  device: where small tensors to exchange are put."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        if not dist.is_initialized():
            raise ValueError("no process group: start with torchrun or accelerate launch")
        self.device = torch.device(device)
        self.count, self.rank = dist.get_world_size(), dist.get_rank()

    def every(self, value: Any) -> list[Any]:
        """What each process has, in the order of their ranks."""
        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value)
        return values

    def mean(self, values: Sequence[float]) -> list[float]:
        """The mean of each value over the processes, in float64."""
        summed = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(summed)
        mean: list[float] = (summed / self.count).tolist()
        return mean

    def first(self, value: Any) -> Any:
        """What the first process has."""
        box = [value]
        dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def same(self, tensors: Mapping[str, torch.Tensor]) -> bool:
        """Whether all processes hold bit-identical tensors: compared by checksums."""
        own = checksums(tensors).to(self.device)
        least, most = own.clone(), own.clone()
        dist.all_reduce(least, op=dist.ReduceOp.MIN)
        dist.all_reduce(most, op=dist.ReduceOp.MAX)
        return torch.equal(least, most)


class Replicas(Together):
    """Processes under `DistributedDataParallel`.  wrapper: the DDP module around the model."""

    def __init__(self, wrapper: DistributedDataParallel) -> None:
        super().__init__(next(wrapper.module.parameters()).device)
        self.wrapper = wrapper

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Without a reducer in here, so that no gradient is exchanged.

        Raises RuntimeError if the replicas have drifted apart.
        """
        options, hooks = self._options(), list(self.wrapper._comm_hooks)
        self._take_down()
        try:
            yield
        finally:
            DistributedDataParallel.__init__(
                self.wrapper, self.wrapper.module, init_sync=False, **options
            )
            for hook, state in hooks:
                self.wrapper.register_comm_hook(state, hook)
        if not self.same(dict(self.wrapper.module.named_parameters())):
            raise RuntimeError("the replicas hold different weights: stop, and resume from disk")

    def _options(self) -> dict[str, Any]:
        """What the wrapper was built with."""
        one = self.wrapper
        known = inspect.signature(DistributedDataParallel.__init__).parameters
        new, old = "forward_sync_buffers", "broadcast_buffers"  # as torch 2.13 and 2.11 call it
        synced = new if new in known else old
        megabytes = one.bucket_bytes_cap // 2**20
        return {
            synced: getattr(one, synced),
            "device_ids": one.device_ids,
            "output_device": one.output_device,
            "dim": one.dim,
            "process_group": one.process_group,
            "bucket_cap_mb": None if megabytes == DEFAULT_BUCKET else megabytes,
            "find_unused_parameters": one.find_unused_parameters,
            "gradient_as_bucket_view": one.gradient_as_bucket_view,
            "static_graph": one.static_graph,
        }

    def _take_down(self) -> None:
        """Drop the reducer, and with it the hooks that it has on every gradient."""
        self.wrapper.logger = None
        self.wrapper.reducer = None  # type: ignore[assignment]


def checksums(tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Shape (tensors,): a sum over each one's bytes, weighted by position, modulo 2**64."""
    return torch.stack([_checksum(tensor.detach()) for tensor in tensors.values()]).cpu()


def _checksum(tensor: torch.Tensor) -> torch.Tensor:
    flat = tensor.contiguous().reshape(-1).view(torch.uint8)
    total = torch.zeros((), dtype=torch.int64, device=tensor.device)
    for number, piece in enumerate(flat.split(1 << 22)):
        weight = torch.arange(1, len(piece) + 1, device=tensor.device) * (2 * number + 1)
        total += (piece.long() * weight).sum()
    return total


def is_sharded(model: nn.Module) -> bool:
    """Whether FSDP2 has cut the model's parameters into shards."""
    from torch.distributed.tensor import DTensor

    return any(isinstance(parameter, DTensor) for parameter in model.parameters())
