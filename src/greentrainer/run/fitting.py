"""How a run keeps within so many bytes, told by the memory that its steps take.

Ways are tried in the order of `docs/memory.md`, each by a step of the largest batch under fake
tensors; the first that fits is taken.  Where none does, fewer tensors may be trained: those worth
most to other rows for the bytes that training them takes.
"""

import math
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from functools import cached_property
from typing import Any, NoReturn

import torch
from torch import nn

from greentrainer.config import RunConfig
from greentrainer.cost import MOMENTS, Memory, flop_counter, pass_memory, rows_that_fit, step_memory
from greentrainer.hf import recomputing
from greentrainer.importance import measure_importance
from greentrainer.methods import Method
from greentrainer.records import Entry
from greentrainer.run.asked import may_shorten, positions_of
from greentrainer.run.filling import Filling
from greentrainer.run.way import Form, Room, Shortened, Updates, Way
from greentrainer.types import IGNORED, Batch, Tail, loss_of, rows_in, taken

SHORT = 4
"""The tail with which fewer tensors are trained."""
SPARE = 0.05
"""Of the limit: what an allocator adds to what is alive."""
COPIES = 5
"""Of the largest tensor, alive for a moment in a probe: gradient, update, weight, moments."""
PARTS = 2
"""Passes over all batches that judging tensors may take: each measures a part of the model."""


class Fitting:
    """Finds how a run of `model` keeps within `limit` bytes, of which `held` are gone already.

    batch: the largest one.  judged: the largest that evaluations during training are on.  moments:
    bytes of the optimizer's state for each byte trained.
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
        judged: Batch | None = None,
        moments: float = MOMENTS,
    ) -> None:
        self.config, self.model, self.batch = config, model, batch
        self.limit, self.held, self.short, self.judged = limit, held, short, judged
        self.moments = moments
        self.names = [name for name, p in model.named_parameters() if p.requires_grad]
        self.parameters = dict(model.named_parameters())
        self.probes = method.budgeted
        positions = positions_of(config, method)
        self.given: Tail = positions if isinstance(positions, int) else None
        self.may = self._room(method)
        self.spent: list[Entry] = []
        self._known: dict[tuple[Any, ...], Memory] = {}

    def way(self, others: Sequence[Batch]) -> Way:
        """The first that fits.  others: batches that tensors are judged by where not all can be.

        Raises ValueError where nothing fits, with the smallest limit that would do.
        """
        found = self.everything()
        if found is not None:
            return found
        if not self.probes:
            self._refuse(min(self.total(form, self.names) for form in self._tried))
        return self._fewer(self._tightest, others)

    def bought(self) -> tuple[Way, float] | None:
        """The first way that fits, and the share of all values that may be trained.

        None where nothing can be.  Of tensors nothing is known but their sizes, and what some of
        them keep is taken for what all do: a run finds room for as much or more.
        """
        if self.held >= self.allowed:
            return None
        found = self.everything()
        if found is not None:
            return found, 1.0
        form = self._tightest
        filling = self._filling(form)
        kept = self.held + self._most_kept(form)
        chosen: list[str] = []
        if self.probes:
            chosen = filling.filled(filling.sizes, self.names, self.allowed - kept)
        told = kept + filling.needed(chosen) if chosen else 0
        if self.probes and not chosen:
            chosen = filling.best(filling.sizes)
            told = self.total(form, chosen) if chosen else 0
        if not chosen:
            return None
        return self._made(form, told, chosen), self._bytes(chosen) / self._bytes(self.names)

    def _made(self, form: Form, told: int, names: Sequence[str] | None = None) -> Way:
        state = round(self.moments * self._bytes(names or self.names))
        rows = None
        if self.judged is not None:
            left = self.allowed - self.held - state
            rows = rows_that_fit(self.model, self.judged, self._loss, self.config.batch_size, left)
        return Way(
            **asdict(form),
            limit=self.limit,
            held=self.held,
            told=told,
            names=None if names is None else tuple(names),
            evaluated=rows,
        )

    def everything(self) -> Way | None:
        """The first way in which all that may be trained is."""
        for family in self.may.families():
            forms = [form for form in family if self._least(form) <= self.allowed]
            if not forms or min(map(self._whole, self._ends(forms))) > self.allowed:
                continue
            for form in forms:
                if (told := self._whole(form)) <= self.allowed:
                    return self._made(form, told)
        return None

    def _whole(self, form: Form) -> int:
        return self.total(form, self.names)

    def _least(self, form: Form) -> float:
        """Bytes of training everything without any activations: told without a pass."""
        return self.held + (self.moments + (form.updates == "step")) * self._bytes(self.names)

    def _room(self, method: Method) -> Room:
        """What may be changed of the run."""
        config, split = self.config, self.short.split
        updates: tuple[Updates, ...] = ("step", "backward")
        if config.updates is not None:
            updates = (config.updates,)
        elif config.accumulate > 1 or config.count > 1 or config.training.get("fp16"):
            updates = ("step",)
        cuts = may_shorten(config, method) and split is not None and not split.encodes
        able = getattr(self.model, "supports_gradient_checkpointing", False)
        kept = config.keep_activations not in (None, "nothing")
        bound = config.positions not in (None, "all") or kept or config.activation_checkpointing
        early = method.stops_early(config) or method.virtual
        return Room(updates, config.batch_size, cuts, able and not (cuts or bound or early))

    def _ends(self, forms: Sequence[Form]) -> list[Form]:
        """Those of a family of which one takes least."""
        whole = [form for form in forms if form.rows is None]
        return list(dict.fromkeys([*whole, forms[-1]]))

    @property
    def _tried(self) -> list[Form]:
        return [form for forms in self.may.families() for form in self._ends(forms)]

    @property
    def _tightest(self) -> Form:
        """What fewer tensors are trained with: the one with room for most."""
        short = SHORT if self.may.cuts else None
        last = self.may.updates[-1]
        found = [
            form
            for form in self._tried
            if form.tail == short
            and form.recompute == self.may.recomputes
            and (form.rows is not None or form.updates == last)
        ]

        def room(form: Form) -> float:
            left = self.allowed - self.held - self._most_kept(form)
            return left / (self.moments + (form.updates == "step"))

        return max(found, key=room)

    def _most_kept(self, form: Form) -> int:
        """Bytes besides gradients and state that no set of tensors exceeds: all, freed at once."""
        return self._step(replace(form, updates="backward"), self.names).activations

    @property
    def allowed(self) -> int:
        """Bytes told that a run may come to."""
        return int((1 - SPARE) * self.limit)

    def total(self, form: Form, names: Sequence[str]) -> int:
        """Bytes at the peak of a run that trains these tensors at most."""
        step = self._step(form, names)
        if self.config.count > 1:  # replicas hold gradients once more, to send them
            step = replace(step, gradients=2 * step.gradients)
        probe = 0
        if self.probes:
            probe = step.optimizer + step.activations + self._copies(names)
        if self._half:
            beside = step.gradients if form.updates == "step" else step.activations
            probe = max(probe, step.optimizer + beside + self._copies(names))
        if self.judged is not None:
            probe = max(probe, step.optimizer + self._evaluation)
        return self.held + replace(step, weights=0, probe=probe).total

    def _step(self, form: Form, names: Sequence[str]) -> Memory:
        key = form, tuple(names)
        if key not in self._known:
            batch = self.batch if form.rows is None else self._some(form.rows)
            with self._shortened(form.tail, batch), recomputing(self.model, form.recompute):
                self._known[key] = step_memory(
                    self.model,
                    batch,
                    names,
                    self._loss,
                    in_backward=form.updates == "backward",
                    accumulating=form.rows is not None or self.config.accumulate > 1,
                    moments=self.moments,
                )
        return self._known[key]

    @cached_property
    def _evaluation(self) -> int:
        """Bytes of a row's evaluation."""
        return pass_memory(self.model, taken(self.judged, slice(1)), self._loss)

    def _some(self, rows: int) -> Batch:
        """So many rows of the batch, those with most labels."""
        labels = self.batch.get("labels")
        if not isinstance(labels, torch.Tensor) or labels.dim() < 2 or labels.device.type == "meta":
            return taken(self.batch, slice(rows))
        count = (labels != IGNORED).flatten(1).sum(1)
        order = count.argsort(descending=True, stable=True)[:rows].tolist()
        return taken(self.batch, order)

    def _loss(self, model: nn.Module, batch: Batch) -> Any:
        kind = next(model.parameters()).device.type
        with torch.autocast(
            "cpu" if kind == "meta" else kind, torch.bfloat16, enabled=self.config.bf16
        ):
            return loss_of(model, batch)

    @contextmanager
    def _shortened(self, tail: Tail, batch: Batch) -> Iterator[None]:
        """Passes of this batch in here are those of a step with this tail."""
        short = self.short
        with ExitStack() as working:
            working.enter_context(short.at(self.given if tail is None else tail))
            last = batch
            if short.split is not None:
                working.enter_context(short.split.on(batch))
                last = short.split.last(batch)
            if short.head is not None and short.head.positions(last) is not None:
                working.enter_context(short.head.on(last))
            yield

    @cached_property
    def _half(self) -> bool:
        """Whether a step works on copies of what it trains, in twice the bytes."""
        return any(self.parameters[name].dtype == torch.bfloat16 for name in self.names)

    def _copies(self, names: Collection[str]) -> int:
        """Bytes of copies of the largest of these."""
        return COPIES * (1 + self._half) * max(self._bytes([name]) for name in names)

    def _bytes(self, names: Collection[str]) -> int:
        tensors = [self.parameters[name] for name in names]
        return sum(t.numel() * t.element_size() for t in tensors)

    def _fewer(self, form: Form, others: Sequence[Batch]) -> Way:
        """As many tensors as fit, those worth most for their bytes first."""
        filling = self._filling(form)
        least, smallest = min((self.total(form, [n]), n) for n in filling.depths)
        if least > self.allowed:
            self._refuse(least)
        with recomputing(self.model, form.recompute):
            worth = self._worth(form, others, self.allowed - least)
        chosen = filling.best(worth) or [smallest]
        return self._made(form, self.total(form, chosen), chosen)

    def _filling(self, form: Form) -> Filling:
        """What tensors are chosen with, for this form."""
        gradients = form.updates == "step"

        def needed(names: Collection[str]) -> int:
            size, copies = self._bytes(names), self._copies(names)
            state, held = self.moments * size, size * gradients
            return round(max(state + held + copies * self._half, state + copies))

        return Filling(
            self.allowed - self.held,
            {name: self._bytes([name]) for name in self.names},
            needed,
            lambda name: self._step(form, [name]).activations,
            lambda names: self.total(form, names) - self.held,
        )

    def _worth(self, form: Form, batches: Sequence[Batch], room: int) -> dict[str, float]:
        """Of each tensor's update by all batches but the last, judged by that one's rows.

        Gradients that judge are held, of so many tensors at a time as `room` bytes have room for;
        where that would take more than `PARTS` parts each update is judged by its own rows, for
        which no gradient is held.  Batches have as many rows as a step has at a time.
        """
        *given, judge = batches if len(batches) > 1 else [*batches, *batches]
        trained = [self.parameters[name] for name in self.names]
        optimizer = torch.optim.AdamW(
            trained, lr=self.config.learning_rate, weight_decay=self.config.weight_decay
        )
        found: dict[str, float] = {}
        start = time.perf_counter()
        parts = list(self._parts(room // 2))
        other: list[Batch] | None = self._pieces([judge], form)
        if len(parts) > PARTS:
            parts, given, other = [self.names], given[:1], None
        with ExitStack() as working:
            working.enter_context(self.short.at(self.given if form.tail is None else form.tail))
            for part in (self.short.split, self.short.head):
                if part is not None:
                    working.enter_context(part.on())
            for names in parts:
                with flop_counter() as count:
                    found |= measure_importance(
                        self.model,
                        self._pieces(given, form),
                        optimizer,
                        self._loss,
                        names,
                        judged_by=other,
                    )
                spent = count.get_total_flops()
                self.spent.append(
                    Entry("probe", forward_flops=spent, seconds=time.perf_counter() - start)
                )
                start = time.perf_counter()
        return found

    def _pieces(self, batches: Sequence[Batch], form: Form) -> list[Batch]:
        """The batches, so many rows at a time as a step has."""
        if form.rows is None:
            return list(batches)
        step = form.rows
        return [
            taken(batch, slice(at, at + step))
            for batch in batches
            for at in range(0, rows_in(batch), step)
        ]

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
