"""How a run keeps within so many bytes, told by the memory that its steps take.

Ways are tried in the order of `docs/memory.md`, each by a step of the largest batch under fake
tensors; the first that fits is taken.  Where none does, fewer tensors may be trained: those worth
most to other rows for the bytes that training them takes.
"""

import math
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal, NoReturn, Protocol

import torch
from torch import nn

from greentrainer.config import RunConfig
from greentrainer.cost import MOMENTS, Memory, flop_counter, step_memory
from greentrainer.forward import LabelledHead, SplitForward
from greentrainer.importance import measure_importance
from greentrainer.methods import Method
from greentrainer.records import Entry
from greentrainer.run.asked import may_shorten, positions_of
from greentrainer.types import Batch, Tail, loss_of

Updates = Literal["step", "backward"]

TAILS: tuple[Tail, ...] = (64, 16, 4, 0)
SHORT = 4
"""The tail with which fewer tensors are trained."""
SPARE = 0.05
"""Of the limit: what an allocator adds to what is alive."""
COPIES = 5
"""Of the largest tensor, alive for a moment in a probe: gradient, update, weight, moments."""
TRIES = 4
"""How often a set of tensors that turns out to take more, or less, is made anew."""
CLOSE = 0.01
"""Of the limit, what may be left when no better set is looked for."""
LIKELY = 2
"""Depths that are gone into, of those whose first guess is worth most."""
PARTS = 2
"""Passes over all batches that judging tensors may take: each measures a part of the model."""


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


class Shortened(Protocol):
    """What of a pass may be left out: `ForwardSavings`, or what a plan has in its place."""

    @property
    def split(self) -> SplitForward | None:
        """Cuts batches in two."""

    @property
    def head(self) -> LabelledHead | None:
        """Works on labelled positions only."""

    def at(self, tail: Tail) -> AbstractContextManager[None]:
        """In here gradient passes through so many positions of each prompt."""


class Fitting:
    """Finds how a run of `model` keeps within `limit` bytes, of which `held` are gone already.

    batch: the largest one.  given: the tail that was asked for.  cuts: whether it may be chosen.
    """

    def __init__(
        self,
        config: RunConfig,
        method: Method,
        model: nn.Module,
        batch: Batch,
        limit: int,
        held: int,
        short: Shortened,
    ) -> None:
        self.config, self.model, self.batch = config, model, batch
        self.limit, self.held, self.short = limit, held, short
        self.names = [name for name, p in model.named_parameters() if p.requires_grad]
        self.parameters = dict(model.named_parameters())
        self.probes = method.budgeted
        positions = positions_of(config, method)
        self.given: Tail = positions if isinstance(positions, int) else None
        whole = short.split is None or short.split.encodes
        self.cuts = may_shorten(config, method) and not whole
        self.spent: list[Entry] = []
        self._known: dict[tuple[Any, ...], Memory] = {}

    def way(self, others: Sequence[Batch]) -> Way:
        """The first that fits.  others: batches that tensors are judged by where not all can be.

        Raises ValueError where nothing fits, with the smallest limit that would do.
        """
        found = self._everything()
        if found is not None:
            return found
        if not self.probes:
            self._refuse(min(self.total(*way, self.names) for way in self._ways))
        return self._fewer(*self._tightest, others)

    def bought(self) -> tuple[Way, float] | None:
        """The first way that fits, and the share of all values that may be trained.

        None where nothing can be.  Of tensors nothing is known but their sizes.
        """
        found = self._everything()
        if found is not None:
            return found, 1.0
        updates, tail = self._tightest
        sizes = {name: float(self._bytes([name])) for name in self.names}
        chosen = self._best(updates, tail, sizes) if self.probes else []
        if not chosen:
            return None
        told = self.total(updates, tail, chosen)
        share = self._bytes(chosen) / self._bytes(self.names)
        return Way(updates, tail, self.limit, self.held, told, tuple(chosen)), share

    def _everything(self) -> Way | None:
        """The first way in which all that may be trained is."""
        for way in self._ways:
            told = self.total(*way, self.names)
            if told <= self.allowed:
                return Way(*way, self.limit, self.held, told)
        return None

    @property
    def _ways(self) -> list[tuple[Updates, Tail]]:
        """In the order in which they are tried."""
        kinds: tuple[Updates, ...] = ("step", "backward")
        if self.config.updates is not None:
            kinds = (self.config.updates,)
        elif not self.may_arrive:
            kinds = ("step",)
        tails = [None, *(TAILS if self.cuts else ())]
        return [(updates, tail) for tail in tails for updates in kinds]

    @property
    def _tightest(self) -> tuple[Updates, Tail]:
        """What fewer tensors are trained with."""
        return self._ways[-1][0], SHORT if self.cuts else None

    @property
    def may_arrive(self) -> bool:
        """Whether updates can be made in the backward pass."""
        training = self.config.training
        alone = self.config.accumulate == self.config.count == 1
        return alone and not training.get("fp16")

    @property
    def allowed(self) -> int:
        """Bytes told that a run may come to."""
        return int((1 - SPARE) * self.limit)

    def total(self, updates: Updates, tail: Tail, names: Sequence[str]) -> int:
        """Bytes at the peak of a run that trains these tensors at most."""
        step = self._step(updates, tail, names)
        if self.config.count > 1:  # replicas hold gradients once more, to send them
            step = replace(step, gradients=2 * step.gradients)
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
        with torch.autocast(
            "cpu" if kind == "meta" else kind, torch.bfloat16, enabled=self.config.bf16
        ):
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
        least, smallest = min((self.total(updates, tail, [n]), n) for n in self._depths)
        if least > self.allowed:
            self._refuse(least)
        worth = self._worth(tail, others, self.allowed - least)
        chosen = self._best(updates, tail, worth) or [smallest]
        told = self.total(updates, tail, chosen)
        return Way(updates, tail, self.limit, self.held, told, tuple(chosen))

    def _best(self, updates: Updates, tail: Tail, worth: Mapping[str, float]) -> list[str]:
        """The tensors worth most together that fit, in the model's order; none where none does.

        What is trained below keeps activations of all above: so for some depths the best set from
        there up to the loss is found, and the best of these taken.
        """
        tried: list[tuple[float, list[str], int]] = []
        for deepest in self._depths:
            above = self.names[self.names.index(deepest) :]
            room = self.allowed - self.held - self._step(updates, tail, [deepest]).activations
            first = self._filled(above, updates, worth, room)
            tried.append((sum(worth[name] for name in first), above, room))
        likely = sorted(tried, key=lambda one: one[0])[-LIKELY:]
        found = [self._settled(updates, tail, worth, above, room) for _, above, room in likely]
        return max(found, key=lambda names: sum(worth[name] for name in names))

    def _settled(
        self,
        updates: Updates,
        tail: Tail,
        worth: Mapping[str, float],
        names: Sequence[str],
        room: int,
    ) -> list[str]:
        """Of these tensors the best that fits, by what sets really take.  room: a first guess."""
        best: list[str] = []
        for _ in range(TRIES):
            chosen = self._filled(names, updates, worth, room)
            if not chosen:
                break
            left = self.allowed - self.total(updates, tail, chosen)
            if left >= 0 and sum(map(worth.__getitem__, chosen)) > sum(
                map(worth.__getitem__, best)
            ):
                best = chosen
            if 0 <= left < CLOSE * self.limit:
                break
            largest = max(self._bytes([name]) for name in chosen)
            room = self._needed(self._bytes(chosen), largest, updates) + left
        return best

    @property
    def _depths(self) -> list[str]:
        """The deepest tensors of some parts of the model, and the smallest beside the loss."""
        count = len(self.names)
        some = [self.names[count * quarter // 4] for quarter in range(4)]
        smallest = min(reversed(self.names), key=lambda name: self._bytes([name]))
        return list(dict.fromkeys([*some, smallest]))

    def _filled(
        self, names: Sequence[str], updates: Updates, worth: Mapping[str, float], room: int
    ) -> list[str]:
        """Of these tensors so many as have room, those worth most for their bytes first."""
        order = sorted(names, key=lambda n: worth[n] / self._bytes([n]), reverse=True)
        chosen: set[str] = set()
        held = largest = 0
        for name in order:
            more = self._bytes([name])
            needed = self._needed(held + more, max(largest, more), updates)
            if worth[name] > 0 and needed <= room:
                chosen.add(name)
                held, largest = held + more, max(largest, more)
        return [name for name in names if name in chosen]

    def _needed(self, size: int, largest: int, updates: Updates) -> int:
        """Bytes besides activations, of training so many or of a probe, whichever is more."""
        step = (MOMENTS + (updates == "step")) * size
        return max(step, MOMENTS * size + COPIES * largest)

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
        with ExitStack() as working:
            working.enter_context(self.short.at(self.given if tail is None else tail))
            for part in (self.short.split, self.short.head):
                if part is not None:
                    working.enter_context(part.on())
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
        needed = int(told / (1 - SPARE))
        raise ValueError(
            f"memory: {_written(self.limit)} is too little to train in; {_written(needed)} would "
            f"do ({_written(self.held)} of them are held before training begins), and a smaller "
            "batch_size or max_length takes less"
        )


def _written(size: int) -> str:
    """Bytes as people say them, rounded up."""
    unit, name = (10**9, "GB") if size >= 10**8 else (10**6, "MB")
    return f"{math.ceil(100 * size / unit) / 100:.2f} {name}"
