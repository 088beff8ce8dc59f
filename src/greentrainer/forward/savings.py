"""What an engine leaves out of the forward pass, and what that does to costs.

`head` computes logits where there is a label, `kept` starts the pass at activations of earlier
epochs, `split` runs the beginnings of rows without gradients.  Each is tried on a piece of the
sample batch first; one that changes its loss stays off.
"""

import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from greentrainer.cost import flop_counter
from greentrainer.forward.check import Losses, Shortened, compare
from greentrainer.forward.head import LabelledHead
from greentrainer.forward.kept import KeptActivations
from greentrainer.forward.options import ForwardOptions, Positions
from greentrainer.forward.packed import SEVERAL, begins_anew
from greentrainer.forward.shapes import tensors, tokens_of
from greentrainer.forward.split import SplitForward
from greentrainer.forward.store import Store
from greentrainer.model import Alone, is_sharded
from greentrainer.types import PARTS, Batch, CostGraph, LossFn, Tail

T = TypeVar("T")

TAILS = (0, *(n * 2**power for power in range(3, 14) for n in (1, 1.5)))
SHORT_TAILS = (0, 2, 4, *TAILS[1:])
"""Positions of a prompt among which is chosen; and all of it."""
GRAIN = 200
"""Shares of batches are told in so many steps, so that few graphs differ."""


class ForwardSavings:
    """The shortened forward pass of a model.

    traced: the model that is traced in place of this one, or this one.
    tried_flops: of trying what works.  notes: what does not work, and why.
    """

    def __init__(
        self,
        model: nn.Module,
        traced: nn.Module,
        options: ForwardOptions,
        positions: Positions,
        batch: Batch,
        loss_fn: LossFn | None,
        processes: Alone,
    ) -> None:
        self.model, self.processes = model, processes
        self.head: LabelledHead | None = None
        self.traced_head: LabelledHead | None = None
        self.kept: KeptActivations | None = None
        self.split: SplitForward | None = None
        self.positions = positions
        self.all_tails: tuple[float, ...] = TAILS
        self.notes: list[str] = []
        self.tried_flops = 0
        self.rows = next((t.shape[0] for _, t in tensors(batch) if t.dim()), 1)
        self._made: dict[tuple[int, float], tuple[CostGraph, Any]] = {}
        try_out = Trial(self, batch, loss_fn)
        try:
            if positions != "all":
                self._take_split(traced, try_out)
            if options.labelled_head:
                self._take_head(traced, try_out)
            if options.keep != "nothing":
                self._take_kept(options, try_out)
        except BaseException:
            self.close()
            raise

    def _take_split(self, traced: nn.Module, try_out: "Trial") -> None:
        """First of all, so that its hook comes before the head's."""
        reason: str | None = None
        if traced is not self.model or is_sharded(self.model):
            reason = "a sharded model"
        else:
            try:
                self.split = SplitForward(self.model)
                reason = self.split.settle(try_out.batch, try_out.compare)
            except ValueError as error:
                reason = str(error)
        if reason:
            if self.split is not None:
                self.split.close()
            self.split = None
            self._leave_out("splitting batches", reason)

    def _take_head(self, traced: nn.Module, try_out: "Trial") -> None:
        try:
            head = LabelledHead(self.model)
        except ValueError as error:
            self._leave_out("labelled head", str(error))
            return

        @contextmanager
        def on(_small: Batch) -> Iterator[None]:
            with head.on():
                yield

        if head.positions(try_out.batch) is None:
            reason: str | None = "the batch has no labels for the model"
        else:
            reason = try_out(on)
        if reason:
            head.close()
            self._leave_out("labelled head", reason)
        else:
            self.head = head
            self.traced_head = head if traced is self.model else LabelledHead(traced)

    def _take_kept(self, options: ForwardOptions, try_out: "Trial") -> None:
        if is_sharded(self.model) or not isinstance(try_out.batch, Mapping):
            what = "a sharded model" if is_sharded(self.model) else "a batch that is no mapping"
            self._leave_out("keeping activations", what)
            return
        if begins_anew(try_out.batch) is not None:
            self._leave_out("keeping activations", SEVERAL)
            return
        home = options.keep_folder or Path(tempfile.gettempdir())
        store = Store(options.keep_bytes, home if options.keep == "disk" else None)
        try:
            kept = KeptActivations(
                self.model,
                store,
                flop_counter,
                torch.bfloat16 if options.keep_bfloat16 else None,
                options.examples,
                self.split.view if self.split else None,
            )
        except ValueError as error:
            store.close()
            self._leave_out("keeping activations", str(error))
            return
        kept.row_tokens = tokens_of(try_out.batch)[0] / max(1, self.rows)
        reason = try_out(kept.trial) if kept.stages else "the model has no stages that are known"
        if reason:
            kept.close()
            self._leave_out("keeping activations", reason)
        else:
            self.kept = kept
            if self.split is not None:
                self.split.coarse = True

    def _leave_out(self, what: str, reason: str) -> None:
        self.notes.append(f"{what}: {reason}")
        warnings.warn(f"no {what}: {reason}", stacklevel=5)

    def close(self) -> None:
        """Leave the models as they were."""
        for part in (self.split, self.head, self.traced_head, self.kept):
            if part is not None:
                part.close()

    @contextmanager
    def probing(self) -> Iterator[None]:
        """In here the model is measured, in whatever mode it is."""
        self.leave()
        with ExitStack() as working:
            for part in (self.split, self.head):
                if part is not None:
                    working.enter_context(part.on())
            yield

    def tails(self, batch: Batch) -> list[Tail]:
        """Those that may be trained with, the longest last."""
        if self.split is None:
            return [None]
        if isinstance(self.positions, int):
            return [self.positions]
        if self.split.encodes:
            return [0, None]
        with self.split.at(0):
            where = self.split.cut(batch)
        longest = where.prefix if where else 0
        return [*(int(tail) for tail in self.all_tails if tail < longest), None]

    def samples(
        self, batch: Batch, graph_of: Callable[[Batch], CostGraph]
    ) -> dict[Tail, CostGraph]:
        """The graph of a batch with each tail that may be trained with, the longest last."""
        found: dict[Tail, CostGraph] = {}
        for tail in self.processes.first(self.tails(batch)):
            with self.at(tail):
                found[tail] = graph_of(batch)
        return found

    def samples_read(
        self, batch: Batch, graph_of: Callable[[Batch], CostGraph], parts: Sequence[str]
    ) -> dict[tuple[int, str], CostGraph]:
        """The graph of a batch with each tail and each of these parts of its prompts.

        None where prompts cannot be read in part: an encoder reads them whole.
        """
        found: dict[tuple[int, str], CostGraph] = {}
        if self.split is None or self.split.encodes:
            return found
        for part in parts:
            for tail in self.tails(batch):
                if tail is not None:
                    with self.at(tail, part):
                        found[tail, part] = graph_of(batch)
        return found

    @contextmanager
    def at(self, tail: Tail, part: str | None = None) -> Iterator[None]:
        """In here gradient passes through so many positions of each prompt.

        part: what is read of the positions before; all when None.
        """
        if self.split is None:
            yield
        else:
            with self.split.at(tail, PARTS[part] if part else None):
                yield

    def go_to(self, tail: Tail, part: str | None = None) -> None:
        """From now on it is so; see `at`."""
        if self.split is not None:
            self.split.tail, self.split.part = tail, PARTS[part] if part else None

    def select(self, graph: CostGraph, names: Iterable[str]) -> None:
        """From now on these tensors are trained."""
        if self.kept is not None:
            self.kept.by_data = bool(graph.notes)
            self.kept.go_to(graph.cut(names))

    def tail_tokens(self, kwargs: Mapping[str, Any]) -> int | None:
        """Positions of a batch that gradient may pass; None if it is not cut."""
        where = self.split.cut(kwargs) if self.split else None
        return where.tail_tokens if where else None

    def unread_tokens(self, kwargs: Mapping[str, Any]) -> int:
        """Positions of a batch that are not read at all."""
        where = self.split.cut(kwargs) if self.split else None
        return where.unread if where else 0

    def enter(self, graph: CostGraph, kwargs: Mapping[str, Any]) -> tuple[int, int]:
        """Before a training batch's forward pass: its FLOPs, and those that are skipped."""
        cut = self.kept.cut if self.kept else 0
        if self.kept is None or not cut:
            return graph.forward_flops, 0
        skipped = sum(stage.flops for stage in graph.stages[:cut])
        tokens = next((t.numel() for path, t in tensors(kwargs) if path == ".input_ids"), 1)
        spent = self.kept.enter(kwargs, skipped / tokens)
        if not self.kept.cut:
            return graph.forward_flops + spent, -spent
        return graph.forward_flops - skipped + spent, skipped - spent

    def leave(self) -> None:
        """After it."""
        if self.kept is not None:
            self.kept.leave()

    # What batches to come will cost

    @property
    def depth(self) -> int:
        """The stages below which activations are kept."""
        return self.kept.depth if self.kept else 0

    def expected(self, graph: CostGraph, batches: int, standing: bool = False) -> CostGraph:
        """The graph of an average one of so many coming batches.

        standing: if what is kept now stays true.
        """
        if self.kept is None or self.kept.off or not graph.stages:
            return graph
        visits = batches * self.rows
        share = int(GRAIN * self.kept.hits(visits, standing)) / GRAIN
        hits = [share] * len(graph.stages)
        return self._remembered((id(graph), share), graph, lambda: graph.expecting(hits))

    def lasting(self, graph: CostGraph) -> frozenset[str] | None:
        """Tensors that can be trained without making untrue what is kept; None if all can."""
        depth = self.depth
        if not depth:
            return None
        return self._remembered((id(graph), -depth), graph, lambda: graph.above(depth))

    def _remembered(self, key: tuple[int, float], graph: CostGraph, make: Callable[[], T]) -> T:
        """What was made of this graph before; the graph is kept beside it, for its number."""
        if key not in self._made:
            if len(self._made) > GRAIN:
                self._made.clear()
            self._made[key] = graph, make()
        found: T = self._made[key][1]
        return found


class Trial:
    """Tries a shortened pass on a batch, in all processes, and counts what that takes."""

    def __init__(self, owner: ForwardSavings, batch: Batch, loss_fn: LossFn | None) -> None:
        self.owner, self.batch, self.loss_fn = owner, batch, loss_fn

    def __call__(self, shortened: Shortened) -> str | None:
        """Why it does not work, if it does not."""
        return self.compare(self.batch, shortened).reason

    def compare(self, batch: Batch, shortened: Shortened) -> Losses:
        """The losses of a batch; a failure in another process is one here too."""
        with flop_counter() as count:
            losses = compare(self.owner.model, batch, self.loss_fn, shortened)
        self.owner.tried_flops += count.get_total_flops()
        failed = next((r for r in self.owner.processes.every(losses.reason) if r), None)
        return replace(losses, failure=losses.failure or failed)
