"""What batches of any size cost, told from a few that were traced: the part that foretells."""

import logging
import time
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from greentrainer.cost import (
    LESS,
    ROOM,
    Foretold,
    Questions,
    added,
    faked,
    flop_counter,
    form_of,
    symbols,
    trace,
    unseen,
)
from greentrainer.engine.traces import Learned, Traces
from greentrainer.forward import (
    Alike,
    LabelledHead,
    NoneAlike,
    Signature,
    SplitForward,
    labelled,
    matched,
    on_host,
    piece,
    signature,
    template_of,
    with_labels,
)
from greentrainer.types import Batch, CostGraph, LossFn, loss_of

LABELLED = "number of labelled positions"
ANSWERS = "answers"
MANY, FEW = 50, 2
"""Labelled positions of batches that are traced for their sizes."""
SEVERAL = 3
"""Shapes that are traced each by itself until it is said: a run may have a whole and a last one."""
LATEST = 256
"""Graphs kept that differ in the number of labelled positions only."""
_NOT_READ = Path()
"""In place of the file of what was traced, before it was looked for."""


EXPECTED = (RuntimeError, ValueError, LookupError, ArithmeticError, AssertionError)
"""What models, and torch tracing them, raise where a batch makes no sense to them; anything else is
a fault, and is raised."""


class Foretelling:
    """What is known of a model's batches: graphs traced, and what they tell of others alike.

    The arguments are those of `GraphCache`.
    """

    def __init__(
        self,
        model: nn.Module,
        parameters: Iterable[nn.Parameter],
        loss_fn: LossFn | None,
        one_call: bool = False,
        on_real_pass: Callable[[CostGraph], None] = lambda _graph: None,
        head: LabelledHead | None = None,
        split: SplitForward | None = None,
        traces: Traces | None = None,
    ) -> None:
        self.model, self.loss_fn = model, loss_fn
        self.one_call = one_call or loss_fn is None
        self.parameters = list(parameters)
        self.on_real_pass, self.head, self.split = on_real_pass, head, split
        self.tracing = False
        self.seconds = 0.0
        self._known: dict[Signature, CostGraph] = {}
        self._learned = Learned()
        self._traces, self._file = traces, _NOT_READ
        self._singular: set[Signature] = set()
        self._by_data = self._by_labels = False
        self._failed: Exception | None = None
        self._untold = 0
        self._asking: dict[Signature, Questions] = {}
        self._latest: OrderedDict[tuple[int, ...], tuple[CostGraph, Any]] = OrderedDict()

    @property
    def by_shapes(self) -> bool:
        """Whether what whole batches cost is told by their shapes alone, as far as is known."""
        asked = any(one.graph.questions is not None for _, one in self._learned.foretold)
        return not (self._by_data or self._by_labels or self._asking or asked)

    def _remembered(
        self, key: tuple[int, ...], of: CostGraph, make: Callable[[], CostGraph]
    ) -> CostGraph:
        """One of the latest graphs made of others; the other is kept with it, for its number."""
        if key not in self._latest:
            self._latest[key] = make(), of
            if len(self._latest) > LATEST:
                self._latest.popitem(last=False)
        self._latest.move_to_end(key)
        return self._latest[key][0]

    def _headed(self, base: CostGraph, batch: Batch) -> CostGraph:
        """The graph with the head on the labelled positions of a batch; `base` has it on none."""
        positions = self.head.positions(batch) if self.head else None
        if self.head is None or positions is None:
            return base

        def make() -> CostGraph:
            share = self._learned.share_of(form_of(base))
            assert share is not None
            everywhere = batch["labels"].numel()
            graph = added(base, share, positions)
            return replace(graph, plain_flops=base.full_flops + everywhere * share.full_flops)

        return self._remembered((id(base), positions), base, make)

    def _signature(self, batch: Batch, args: tuple[Any, ...] | None = None) -> Signature:
        """The sizes that a batch is known by; with `args` those of the call that it makes."""
        parts = self.split.parts(batch) if self.split else batch
        found = signature(parts if args is None else (args, parts))
        if self._by_data or self._by_labels:
            found = (*found, (LABELLED, (labelled(batch),)))
        while found in self._asking:
            answers = self._asking[found].of(batch, on_host)
            found = (*found, (f"{ANSWERS} {answers}", ()))
        return found

    def _find(self, wanted: Signature, batch: Batch) -> CostGraph | None:
        """A graph known, or foretold."""
        if wanted in self._known:
            return self._known[wanted]
        for number, (template, foretold) in enumerate(self._learned.foretold):
            sizes = matched(template, wanted)
            if sizes is None or not foretold.covers(sizes):
                continue
            every = self._every(sizes)
            questions = foretold.graph.questions
            if questions is None:
                self._known[wanted] = foretold.at(every)
                return self._known[wanted]
            if questions.alike(batch, sizes, on_host):
                key = (*wanted, (f"{ANSWERS} alike {number}", ()))
                if key not in self._known:
                    self._known[key] = foretold.at(every)
                return self._known[key]
        return None

    def _every(self, sizes: tuple[int, ...]) -> tuple[int, ...]:
        """Sizes, and last of all the number of labels; of these a head has its own account."""
        return sizes if self._by_labels else (*sizes, 0)

    def _learn(self, batch: Batch) -> CostGraph | None:
        """The graph of a batch, foretold with that of all others alike; None if that cannot be."""
        wanted = self._signature(batch)
        self._recall(batch)
        known = self._find(wanted, batch)
        if known is not None:
            return known
        form = tuple((path, tuple(min(size, 2) for size in shape)) for path, shape in wanted)
        if self._by_data or form in self._singular:
            return None
        before = [
            one
            for template, one in self._learned.foretold
            if (found := matched(template, wanted)) and one.in_order(found)
        ]
        for paired, room in [(False, ROOM[0]), (False, ROOM[1]), (True, ROOM[0]), (True, ROOM[1])]:
            try:
                alike = Alike(batch, self.split, paired)
                sizes = alike.room(room)
                for one in before:
                    sizes = [max(pair) for pair in zip(sizes, one.symbols.values, strict=False)]
                with _quietly():
                    told = self._told(alike, sizes)
                if self._by_labels or told[0][1].graph.questions is not None:
                    self._require_true(told, batch)
            except _ByLabels:
                self._by_labels = True
                return self._learn(batch)
            except _Contradiction:
                if room == ROOM[1]:
                    break
                continue
            except NoneAlike:
                continue
            except EXPECTED as error:  # what a model makes of sizes that nobody gave it
                self._failed = self._failed or error
                continue
            self._learned.foretold = [*told, *self._learned.foretold]
            graph = self._find(wanted, batch)
            if graph is not None:
                asks = any(one.graph.questions for _, one in self._learned.foretold)
                if self._traces and self._file and not asks:
                    self._traces.write(self._file, self._learned)
                return graph
        self._singular.add(form)
        return None

    def _say_failed(self, seconds: float) -> None:
        """Tell once that shapes cannot be foretold, and why, when there are several.

        seconds: that tracing the last took.  Where costs depend on data the graph's notes tell.
        """
        if self._failed is None or self._by_data:
            return
        self._untold += 1
        if self._untold != SEVERAL:
            return
        error: BaseException = self._failed
        while error.__cause__ is not None:
            error = error.__cause__
        why = " ".join(str(error).split())[:200]
        warnings.warn(
            f"what batches of other sizes cost {type(self.model).__name__} cannot be foretold "
            f"({type(error).__name__}: {why}): each new shape is traced by itself, in about "
            f"{seconds:.1f} s",
            stacklevel=2,
        )

    def _recall(self, batch: Batch) -> None:
        """Take what an earlier run traced of such a model, if it is what a pass costs now."""
        if self._traces is None or self._file is not _NOT_READ:
            return
        if any(parameter.is_meta for parameter in self.model.parameters()):
            self._traces = None
            return
        self._file = self._traces.path(self.model, self.parameters, self.head, self.split)
        found = self._traces.read(self._file)
        if found is None:
            return
        self._learned = found
        if not self._agrees(piece(batch)):
            self._learned = Learned()
            self._known.clear()
            self._traces.drop(self._file)

    def _agrees(self, batch: Batch) -> bool:
        """Whether a whole pass forward over it, counted under fake tensors, costs what is told.

        Nothing is executed, so a run spends the same whether anything was kept or not.
        """
        with self._noting([]), unseen(), ExitStack() as stack:
            if self.split:
                stack.enter_context(self.split.at(None))
            found = self._find(self._signature(batch), batch)
            if found is None:
                return False
            told = self._headed(found, batch).forward_flops
            if self.head and self.head.positions(batch) is not None:
                stack.enter_context(self.head.on(batch))
            stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
            _, blank = stack.enter_context(faked(self.model, batch, ()))
            count = stack.enter_context(flop_counter())
            try:
                with torch.no_grad():
                    loss_of(self.model, blank, self.loss_fn)
            except EXPECTED:  # a model that was traced can be; this is another one
                return False
        return int(count.get_total_flops()) == told

    def _told(self, alike: Alike, sizes: Sequence[int]) -> list[tuple[Signature, Foretold]]:
        """What two traces tell of batches alike.  Raises ValueError if they contradict."""
        dimensions = {size for p in self.model.parameters() for size in p.shape}
        sums = [*alike.sums, *((length, LESS) for length in alike.less)]
        chosen = symbols([*sizes, MANY], dimensions, sums)
        least = alike.least()
        count = len(least)
        graph, seen = self._synthetic(alike, chosen.values[: count + 1], chosen.factored)
        questions = graph.questions
        if questions is not None:
            asked = None if self._by_labels else questions.sized(chosen.values[:count], alike.times)
            graph = replace(graph, questions=asked)
        foretold = Foretold(graph, chosen, least, not self.one_call)
        small, _ = self._synthetic(alike, (*least, FEW), None)
        if foretold.at((*least, FEW)) != small:
            raise _Contradiction
        none, one = foretold.at((*least, 0)), foretold.at((*least, 1))
        form = form_of(none)
        if self.head and none != one and self._learned.share_of(form) is None:
            self._learned.per_position.append((form, added(one, none, -1)))
        count += self._by_labels
        primes = dict(zip(chosen.values[:count], range(count), strict=True))
        return [(template_of(shapes, primes, alike.times), foretold) for shapes in seen]

    def _synthetic(
        self, alike: Alike, sizes: Sequence[int], work: Callable[[int], int] | None
    ) -> tuple[CostGraph, set[Signature]]:
        """The graph of a batch of other sizes, and the signatures it is known by."""
        *lengths, labels = sizes
        batch, where = alike.made(lengths)
        if self._by_labels:
            batch = with_labels(batch, labels)
        headed = self.head is not None and self.head.positions(alike.batch) is not None
        calls: list[Signature] = []
        with ExitStack() as stack:
            if self.split:
                stack.enter_context(self.split.on(batch if where is None else None, where))
            known = self._signature(batch)
            if self.head and headed:
                stack.enter_context(self.head.on(batch, count=labels))
            stack.enter_context(self._noting(calls))
            graph = self._pass(batch, work)
        return graph, {known, *(calls if len(set(calls)) == 1 else ())}

    @contextmanager
    def _noting(self, calls: list[Signature]) -> Iterator[None]:
        """In here a trace is made; notes what the model is called with."""

        def note(_model: Any, args: Any, kwargs: Any) -> None:
            parts = self.split.parts(kwargs) if self.split else kwargs
            calls.append(signature((args, parts)))

        handle = self.model.register_forward_pre_hook(note, prepend=True, with_kwargs=True)
        self.tracing = True
        start = time.perf_counter()
        try:
            yield
        finally:
            handle.remove()
            self.tracing = False
            self.seconds += time.perf_counter() - start

    def _require_true(self, told: Sequence[tuple[Signature, Foretold]], batch: Batch) -> None:
        """Hold what is foretold of batches that are looked at against a trace of one."""
        wanted = self._signature(batch)
        sizes = [(matched(template, wanted), foretold) for template, foretold in told]
        found = [foretold.at(self._every(one)) for one, foretold in sizes if one is not None]
        with self._noting([]):
            true = bool(found) and found[0] == self._pass(batch)
        if not true:
            raise _Contradiction

    def _pass(self, batch: Batch, work: Callable[[int], int] | None = None) -> CostGraph:
        with _trainable(self.parameters):
            graph = trace(self.model, batch, self.loss_fn, work)
        if graph.notes:
            self._by_data = True
            self.on_real_pass(graph)
        elif graph.questions is not None and work is not None:
            self._require_known(graph.questions)
        return graph

    def _require_known(self, questions: Questions) -> None:
        """Where labels are asked for, so many must be given to batches without sense."""
        if all(path.endswith("['labels']") for path in questions.paths):
            if self.head or self.split:
                raise _Contradiction("costs depend on labels")
            if not self._by_labels:
                raise _ByLabels


class _Contradiction(ValueError):
    """The costs of this model are no polynomial in its sizes."""


class _ByLabels(Exception):
    """Costs depend on labels, which is now known."""


@contextmanager
def _quietly() -> Iterator[None]:
    """In here a trace may fail: torch's word on it is kept from the user."""
    speaker = logging.getLogger("torch._subclasses.fake_tensor")
    before, speaker.disabled = speaker.disabled, True
    try:
        yield
    finally:
        speaker.disabled = before


@contextmanager
def _trainable(parameters: list[nn.Parameter]) -> Iterator[None]:
    """Everything that may be trained requires a gradient in here, whatever is frozen now."""
    before = [parameter.requires_grad for parameter in parameters]
    try:
        for parameter in parameters:
            parameter.requires_grad_()
        yield
    finally:
        for parameter, flag in zip(parameters, before, strict=True):
            parameter.requires_grad_(flag)
