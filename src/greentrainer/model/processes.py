"""Several processes that train one model: what each measures becomes what all decide.

`Alone` is one process.  `Together` is any number that hold the same model, sharded by FSDP2
(`fully_shard`) or as replicas.  `Replicas` are those under `DistributedDataParallel`, which fixes
at its construction which gradients it exchanges: freezing afterwards makes it wait for gradients
that never come, and unfreezing lets the replicas drift apart without a word.  So its reducer is
taken down before anything is frozen or measured, and built anew, in the same object, afterwards.
"""

import gc
import inspect
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

Exchange = torch.futures.Future[torch.Tensor]
T = TypeVar("T")
U = TypeVar("U")

DEFAULT_BUCKET = 25
"""Megabytes of a bucket of gradients if nothing else is said; the first is then a smaller one."""


class Elsewhere(ValueError):
    """What made another process refuse; that one tells it."""


class Alone:
    """One process: everything is agreed already.

    agrees: whether decisions are made between steps, where all can agree on them, and not at the
        batch at hand; one process under DDP is no exception, for its reducer has to be rebuilt.
    """

    count = 1
    rank = 0
    agrees = False

    def every(self, value: Any) -> list[Any]:
        """What each process has, in the order of their ranks."""
        return [value]

    def mean(self, values: Sequence[float]) -> list[float]:
        """The mean of each value over the processes, in float64."""
        return list(values)

    def weighted(self, values: Sequence[float], weight: float) -> list[float]:
        """The mean of each value over the processes, which weigh as much as they say."""
        return list(values)

    def part(self, count: int) -> int:
        """How many of so many passes this process makes, where they are dealt out."""
        return count

    def pooled(self, own: Sequence[T]) -> list[T]:
        """What was measured on batches that were dealt out, in the order of one process."""
        return list(own)

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

    def shared(self, items: Sequence[T], work: Callable[[Sequence[T]], Sequence[U]]) -> list[U]:
        """What `work` makes of items, one for each; every process works on some of them."""
        return list(work(items))

    @contextmanager
    def agreed(self) -> Iterator[None]:
        """A ValueError or OSError in here is one in all processes, the first that has one tells it.

        It is an `Elsewhere` in the others.
        """
        yield

    def meet(self) -> None:
        """Wait until all are here."""

    def leave(self) -> None:
        """For the last time wait until all are here, and leave the group."""
        gc.collect()  # reducers go before the group that they belong to
        self.meet()
        if dist.is_initialized():
            dist.destroy_process_group()

    def exchanged(self) -> int:
        """Bytes of gradients that this process gave to be exchanged since it was last asked."""
        return 0

    def gathered(self) -> int:
        """Bytes of sharded weights made whole in this process since it was last asked."""
        return 0


class Together(Alone):
    """All processes of a group.  device: where small tensors to exchange are put."""

    agrees = True

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

    def weighted(self, values: Sequence[float], weight: float) -> list[float]:
        """The mean of each value over the processes, which weigh as much as they say."""
        *summed, total = self.mean([*(weight * value for value in values), weight])
        return [value / total for value in summed]

    def part(self, count: int) -> int:
        """How many of so many passes this process makes, where they are dealt out: all as many.

        Of a sharded model they make each together.
        """
        return -(-count // self.count)

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

    def shared(self, items: Sequence[T], work: Callable[[Sequence[T]], Sequence[U]]) -> list[U]:
        """What `work` makes of items, one for each; every process works on some of them."""
        found: list[Any] = [None] * len(items)
        for rank, part in enumerate(self.every(list(work(items[self.rank :: self.count])))):
            found[rank :: self.count] = part
        return found

    @contextmanager
    def agreed(self) -> Iterator[None]:
        """A ValueError or OSError in here is one in all processes, the first that has one tells it.

        It is an `Elsewhere` in the others.
        """
        own: Exception | None = None
        try:
            yield
        except (ValueError, OSError) as error:
            own = error
        reasons = self.every(None if own is None else str(own))
        failed = next((rank for rank, reason in enumerate(reasons) if reason is not None), None)
        if failed is None:
            return
        if failed == self.rank and own is not None:
            raise own
        raise Elsewhere(f"process {failed}: {reasons[failed]}") from own

    def meet(self) -> None:
        """Wait until all are here."""
        self.every(None)


class Replicas(Together):
    """Processes under `DistributedDataParallel`.  wrapper: the DDP module around the model."""

    def __init__(self, wrapper: DistributedDataParallel) -> None:
        super().__init__(next(wrapper.module.parameters()).device)
        self.wrapper = wrapper
        self._bytes = 0
        self._hook: tuple[Callable[..., Any], Any] | None = None

    def pooled(self, own: Sequence[T]) -> list[T]:
        """What was measured on batches that were dealt out, in the order of one process."""
        each = zip(*self.every(list(own)), strict=True)
        return [value for some in each for value in some]

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Without a reducer in here, so that no gradient is exchanged.

        Raises RuntimeError if the replicas have drifted apart.
        """
        options = self._options()
        if self._hook is None:  # the user's own, or what DDP does without any
            plain = allreduce_hook, self.wrapper.process_group
            self._hook = next(iter(self.wrapper._comm_hooks), plain)
        self._take_down()
        try:
            yield
        finally:
            DistributedDataParallel.__init__(
                self.wrapper, self.wrapper.module, init_sync=False, **options
            )
            self.wrapper.register_comm_hook(None, self._counted)
        if not self.same(dict(self.wrapper.module.named_parameters())):
            raise RuntimeError("the replicas hold different weights: stop, and resume from disk")

    def exchanged(self) -> int:
        """Bytes of gradients that this process gave to be exchanged since it was last asked."""
        since, self._bytes = self._bytes, 0
        return since

    def _counted(self, _state: Any, bucket: dist.GradBucket) -> Exchange:  # type: ignore[name-defined]
        assert self._hook is not None
        self._bytes += bucket.buffer().nbytes
        hook, state = self._hook
        done: Exchange = hook(state, bucket)
        return done

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


def started() -> int:
    """How many processes a launcher started, this one among them."""
    return int(os.environ["WORLD_SIZE"]) if "RANK" in os.environ else 1


def local_rank() -> int:
    """This process's number among those on this machine."""
    return int(os.environ.get("LOCAL_RANK", "0")) if "RANK" in os.environ else 0


def on_this_machine() -> int:
    """How many of the processes are on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if "RANK" in os.environ else 1


def joined() -> Alone:
    """All processes of the group that this one has joined, or this one alone."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return Alone()
    cuda = dist.get_backend() == "nccl"
    return Together(torch.device("cuda", torch.cuda.current_device()) if cuda else "cpu")


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
