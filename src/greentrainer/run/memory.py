"""A run within so many bytes: what makes room for it, told before anything is trained.

Ways are tried in the order of `docs/memory.md`, each by the memory that a step of the largest batch
takes under fake tensors; the first that fits is taken.  Where none does, fewer tensors may be
trained: those worth most to other rows for the bytes that training them takes.
"""

import ctypes
import json
import sys
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, NoReturn

import psutil
import torch
from torch import nn

from greentrainer.config import RunConfig
from greentrainer.cost import MOMENTS, Memory, flop_counter, step_memory
from greentrainer.forward import ForwardSavings
from greentrainer.importance import measure_importance
from greentrainer.methods import Method
from greentrainer.model import Alone
from greentrainer.records import Entry, write_json
from greentrainer.run.asked import forward_of, positions_of
from greentrainer.types import Batch, Tail, loss_of

Updates = Literal["step", "backward"]

KEPT = "memory.json"
TAILS: tuple[Tail, ...] = (64, 16, 4, 0)
SPARE = 0.05
"""Of the limit: what an allocator adds to what is alive."""
COPIES = 5
"""Of the largest tensor, alive for a moment in a probe: gradient, update, weight, moments."""
PARTS = 2
"""Passes over all batches that judging tensors may take: each measures a part of the model."""
M_MMAP_THRESHOLD = -3
RETURNED = 1 << 16
"""Bytes of an allocation from which on the C library gives it back when it is freed."""


@dataclass(frozen=True)
class Way:
    """How a run keeps within its limit.

    tail: None, as it was asked for.  names: what may be trained, None for all.  limit: bytes; of
    them `held` before training, and `told` at the peak of training.
    """

    updates: Updates
    tail: Tail
    limit: int
    held: int
    told: int
    names: tuple[str, ...] | None = None


def limit_of(asked: int | Literal["auto"], device: torch.device) -> int:
    """Bytes that a run may take."""
    if asked != "auto":
        return int(asked)
    if device.type == "cuda":
        return int(sum(torch.cuda.mem_get_info(device)[:1]) + torch.cuda.memory_reserved(device))
    return int(psutil.virtual_memory().available + held_on(device))


def held_on(device: torch.device) -> int:
    """Bytes that are held now: of a GPU those allocated, else those of the process."""
    if device.type == "cuda":
        return int(torch.cuda.memory_allocated(device))
    return int(psutil.Process().memory_info().rss)


def give_back() -> None:
    """Have the C library give freed memory back at once: what is counted is what is held."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, RETURNED)
            ctypes.CDLL(None).malloc_trim(0)


class Fitting:
    """Finds how a run of `model` keeps within `limit` bytes.  batch: the largest one."""

    def __init__(
        self, config: RunConfig, method: Method, model: nn.Module, batch: Batch, limit: int
    ) -> None:
        self.config, self.model, self.batch, self.limit = config, model, batch, limit
        device = next(model.parameters()).device
        self.held = held_on(device)
        self.names = [name for name, p in model.named_parameters() if p.requires_grad]
        self.parameters = dict(model.named_parameters())
        self.probes = method.budgeted
        positions = positions_of(config, method)
        options = replace(forward_of(config, method, 0), keep="nothing")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the run says so itself
            self.short = ForwardSavings(model, model, options, positions, batch, None, Alone())
        self.given: Tail = positions if isinstance(positions, int) else None
        split = self.short.split
        self.cuts = positions == "choose" and split is not None and not split.encodes
        self.spent: list[Entry] = []
        self._known: dict[tuple[Any, ...], Memory] = {}

    def close(self) -> None:
        """Leave the model as it was."""
        self.short.close()

    def way(self, others: Sequence[Batch]) -> Way:
        """The first that fits.  others: batches that tensors are judged by where not all can be.

        Raises ValueError where nothing fits, with the smallest limit that would do.
        """
        kinds: list[Updates] = ["step", "backward"]
        if self.config.updates is not None:
            kinds = [self.config.updates]
        elif not self.may_arrive:
            kinds = ["step"]
        tails = [None, *(TAILS if self.cuts else ())]
        for tail in tails:
            for updates in kinds:
                told = self.total(updates, tail, self.names)
                if told <= self.allowed:
                    return Way(updates, tail, self.limit, self.held, told)
        if not self.probes:
            self._refuse(min(self.total(kinds[-1], tail, self.names) for tail in tails))
        tail = TAILS[2] if self.cuts else None
        return self._fewer(kinds[-1], tail, others)

    @property
    def may_arrive(self) -> bool:
        """Whether updates can be made in the backward pass."""
        training = self.config.training
        return self.config.accumulate == 1 and not training.get("fp16")

    @property
    def allowed(self) -> int:
        """Bytes told that a run may come to."""
        return int((1 - SPARE) * self.limit)

    def total(self, updates: Updates, tail: Tail, names: Sequence[str]) -> int:
        """Bytes at the peak of a run that trains these tensors at most."""
        step = self._step(updates, tail, names)
        probe = 0
        if self.probes:
            largest = max(self._bytes([name]) for name in names)
            probe = step.optimizer + step.activations + COPIES * largest
        return self.held + replace(step, weights=0, probe=probe).total

    def _step(self, updates: str, tail: Tail, names: Sequence[str]) -> Memory:
        key = updates, tail, tuple(names)
        if key not in self._known:
            with self._shortened(tail):
                self._known[key] = step_memory(
                    self.model, self.batch, names, self._loss, in_backward=updates == "backward"
                )
        return self._known[key]

    def _loss(self, model: nn.Module, batch: Batch) -> Any:
        kind = next(model.parameters()).device.type
        with torch.autocast(kind, torch.bfloat16, enabled=self.config.bf16):
            return loss_of(model, batch)

    @contextmanager
    def _shortened(self, tail: Tail) -> Iterator[None]:
        """Passes of the largest batch in here are those of a step with this tail."""
        short = self.short
        with ExitStack() as working:
            working.enter_context(short.at(self.given if tail is None else tail))
            last = self.batch
            if short.split is not None:
                working.enter_context(short.split.on(self.batch))
                last = short.split.last(self.batch)
            if short.head is not None and short.head.positions(last) is not None:
                working.enter_context(short.head.on(last))
            yield

    def _bytes(self, names: Collection[str]) -> int:
        tensors = [self.parameters[name] for name in names]
        return sum(t.numel() * t.element_size() for t in tensors)

    def _fewer(self, updates: Updates, tail: Tail, others: Sequence[Batch]) -> Way:
        """As many tensors as fit, those worth most for their bytes first."""
        each = MOMENTS + (updates == "step")
        smallest = min(self.names, key=lambda name: self._bytes([name]))
        told = least = self.total(updates, tail, [smallest])
        if least > self.allowed:
            self._refuse(least)
        found = self._worth(tail, others, self.allowed - least)
        order = sorted(self.names, key=lambda n: found[n] / self._bytes([n]), reverse=True)
        chosen: list[str] = []
        for _ in range(2):  # what the first set leaves of its activations is filled up
            room = self.allowed - told
            for name in order:
                needed = each * self._bytes([name])
                if name not in chosen and found[name] > 0 and needed <= room:
                    chosen.append(name)
                    room -= needed
            while chosen and self.total(updates, tail, chosen) > self.allowed:
                chosen.pop()
            told = self.total(updates, tail, chosen) if chosen else least
        if not chosen:
            self._refuse(least + each * self._bytes([order[0]]))
        names = tuple(name for name in self.names if name in set(chosen))
        return Way(updates, tail, self.limit, self.held, told, names)

    def _worth(self, tail: Tail, batches: Sequence[Batch], room: int) -> dict[str, float]:
        """Of each tensor's update by all batches but the last, judged by that one's rows.

        Gradients that judge are held, of so many tensors at a time as `room` bytes have room for;
        where that would take more than `PARTS` parts each update is judged by its own rows, for
        which no gradient is held.
        """
        *given, judge = batches if len(batches) > 1 else [*batches, *batches]
        trained = [self.parameters[name] for name in self.names]
        optimizer = torch.optim.AdamW(
            trained, lr=self.config.learning_rate, weight_decay=self.config.weight_decay
        )
        found: dict[str, float] = {}
        start = time.perf_counter()
        parts = list(self._parts(room // 2))
        other: list[Batch] | None = [judge]
        if len(parts) > PARTS:
            parts, given, other = [self.names], given[:1], None
        with self.short.at(self.given if tail is None else tail), self.short.probing():
            for names in parts:
                with flop_counter() as count:
                    found |= measure_importance(
                        self.model, given, optimizer, self._loss, names, judged_by=other
                    )
                spent = count.get_total_flops()
                self.spent.append(
                    Entry("probe", forward_flops=spent, seconds=time.perf_counter() - start)
                )
                start = time.perf_counter()
        return found

    def _parts(self, room: int) -> Iterator[list[str]]:
        """The names, so many at a time as have room together, and at least one."""
        part: list[str] = []
        for name in self.names:
            if part and self._bytes([*part, name]) > room:
                yield part
                part = []
            part.append(name)
        yield part

    def _refuse(self, told: int) -> NoReturn:
        needed = told / (1 - SPARE)
        raise ValueError(
            f"memory: {self.limit / 1e9:.2f} GB are too little to train in; {needed / 1e9:.2f} GB "
            f"would do ({self.held / 1e9:.2f} GB are held before training begins), and a smaller "
            "batch_size or max_length takes less"
        )


def within(
    config: RunConfig,
    method: Method,
    model: nn.Module,
    batches: Callable[[], tuple[Batch, Sequence[Batch]]],
) -> tuple[RunConfig, Way, list[Entry]]:
    """The configuration as it keeps to its memory, how, and what finding out took.

    Of the model that is to be trained, tensors that do not fit are frozen.  batches: makes the
    largest one of the run, and some of its first, on the model's device.

    Raises ValueError where nothing fits.
    """
    assert config.memory is not None
    place = config.output_dir / KEPT
    spent: list[Entry] = []
    if config.resume and place.is_file():
        saved = json.loads(place.read_text(encoding="utf-8"))
        names = saved.pop("names")
        way = Way(**saved, names=None if names is None else tuple(names))
    else:
        give_back()
        model.train()
        device = next(model.parameters()).device
        largest, first = batches()
        fitting = Fitting(config, method, model, largest, limit_of(config.memory, device))
        with closing(fitting):
            way, spent = fitting.way(first), fitting.spent
        if place.parent.is_dir():
            write_json(place, asdict(way))
    for name, parameter in model.named_parameters():
        if way.names is not None and name not in way.names:
            parameter.requires_grad_(False)
    changed: dict[str, Any] = {"updates": way.updates}
    if way.tail is not None:
        changed["positions"] = way.tail
    return config.model_copy(update=changed), way, spent
