"""Holds the books against what steps really execute.

What a batch costs is told by its graph before it is run.  Whether that is true shows when it is
run: so the first batch of a run is counted, operation by operation, and the first after each
selection; it costs a little time and changes nothing.  Where the count and the books differ, the
books take the count, later batches are booked by the same ratio until the next one is counted, and
what may be spent from now on is planned by it.

What is counted is everything from the model's forward pass on, or from the beginning of
`engine.batch(...)` where the loss is more than that, to the end of the backward pass.  A mode that
counts must be left in the frame in which it was entered, and the backward pass is another one than
the forward pass.  So it is counted by a `torch.autograd.backward` of ours, for this one batch.
"""

import hashlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any

import torch

from greentrainer.cost import flop_counter
from greentrainer.records import Ledger
from greentrainer.types import Selection

TOLERANCE = 1e-3
"""Deviation of the count from the books that is put right."""
APART = 100
"""Batches after which one is counted whatever is trained, or where the plan alone chose anew."""
FIRST = 2
"""Batches counted at the beginning: what a first step sets up may change the second."""


class Verifier:
    """Counts a batch where that is due.

    found: called when the books were wrong, with what is really spent for each FLOP told.
    scales: what is booked for each FLOP of a forward and of a backward pass that a graph tells.
    ratio: the same of both together.
    known: selections that were counted.
    """

    def __init__(self, ledger: Callable[[], Ledger]) -> None:
        self._ledger = ledger
        self.found: Callable[[float], None] = lambda _ratio: None
        self.scales, self.ratio = (1.0, 1.0), 1.0
        self.known: set[str] = set()
        self.enabled = True
        self._key = ""
        self._due, self._last = True, 0
        self._told: tuple[int, int] | None = None
        self._counted = [0, 0]
        self._passes = 0
        self._counter: Any = None
        self._backward = False
        self._undo = ExitStack()
        self._forward: ExitStack | None = None

    def selected(self, chosen: Selection, asked: bool) -> None:
        """From now on this is trained."""
        self._key = key_of(chosen)
        batches = self._ledger().batches
        wanted = asked or self.scales != (1.0, 1.0) or batches - self._last >= APART
        self._due = self._key not in self.known and (wanted or self._due)

    @property
    def state(self) -> dict[str, Any]:
        """What another one goes on from, as plain values."""
        return {"known": sorted(self.known), "scales": list(self.scales), "ratio": self.ratio}

    def go_on(self, state: Mapping[str, Any]) -> None:
        """As it was when the run was saved."""
        self.known = set(state.get("known", ()))
        forward, backward = state.get("scales", (1.0, 1.0))
        self.scales, self._last = (forward, backward), self._ledger().batches
        self._due = self._key not in self.known
        if self.scales != (1.0, 1.0):
            self.ratio = state["ratio"]
            self.found(self.ratio)

    @contextmanager
    def loss(self) -> Iterator[None]:
        """In here a batch's loss is computed, whatever of it lies outside the model."""
        self.settle()
        if not self._is_due():
            yield
            return
        self._begin()
        with self._counting(0):
            yield

    @contextmanager
    def aside(self) -> Iterator[None]:
        """What runs in here is no part of the batch."""
        before = self._total()
        try:
            yield
        finally:
            self._counted[0] -= self._total() - before

    def forward_begins(self, told: tuple[int, int]) -> None:
        """A training batch; told: FLOPs of its forward and its backward pass, by its graph."""
        if not self._is_due():
            return
        if self._counter is None:
            self._begin()
            self._forward = ExitStack()
            self._forward.enter_context(self._counting(0))
        self._told = told

    def forward_ends(self) -> None:
        """Also where it ended in an error."""
        if self._forward is not None:
            forward, self._forward = self._forward, None
            forward.close()

    def settle(self) -> None:
        """The batch is over: hold the books against it.  Raises what `found` does."""
        self._undo.close()
        told, self._told = self._told, None
        if told is None or not self._passes:
            return
        self._last = self._ledger().batches
        self._due = self._last < FIRST
        self.known.add(self._key)
        entry = self._ledger().newest
        forward, backward = self._counted
        executed = forward + backward
        self._ledger().amend(counted_flops=executed, told_flops=entry.flops)
        if abs(executed - entry.flops) <= TOLERANCE * entry.flops:
            return
        self._ledger().amend(
            forward_flops=forward - entry.forward_flops,
            backward_flops=backward - entry.backward_flops,
        )
        first = self.scales == (1.0, 1.0)
        self.scales = _ratio(forward, told[0]), _ratio(backward, told[1])
        self.ratio = _ratio(executed, sum(told))
        if first:
            warnings.warn(
                f"a step executes {self.ratio:.3g} times the FLOPs that its graph tells: the books "
                "are corrected by what was counted, and so is what may be spent",
                stacklevel=2,
            )
        self.found(self.ratio)

    def close(self) -> None:
        """Count no more."""
        self.forward_ends()
        self._undo.close()
        self._told, self.enabled = None, False

    def _is_due(self) -> bool:
        late = self._ledger().batches - self._last >= APART
        return self.enabled and (self._due or late)

    def _begin(self) -> None:
        self._undo.close()
        self._told, self._counted, self._passes = None, [0, 0], 0
        plain = torch.autograd.backward

        @wraps(plain)
        def backward(*args: Any, **kwargs: Any) -> None:
            if self._told is None or self._backward:
                plain(*args, **kwargs)
                return
            self._passes, self._backward = self._passes + 1, True
            try:
                with self._counting(1):
                    plain(*args, **kwargs)
            finally:
                self._backward = False

        torch.autograd.backward = backward

        def put_back() -> None:
            if torch.autograd.backward is backward:
                torch.autograd.backward = plain

        self._undo.callback(put_back)

    @contextmanager
    def _counting(self, which: int) -> Iterator[None]:
        """Count forward (0) or backward (1); the second may lie within the first."""
        if self._counter is not None:
            before = self._total()
            yield
            within = self._total() - before
            self._counted[which] += within
            self._counted[0] -= within
            return
        self._counter = flop_counter()
        try:
            with self._counter:
                yield
        finally:
            self._counted[which] += self._total()
            self._counter = None

    def _total(self) -> int:
        return int(self._counter.get_total_flops()) if self._counter is not None else 0


def key_of(chosen: Selection) -> str:
    """What tells a selection apart, in short."""
    told = f"{chosen.tail} {chosen.part} {sorted(chosen.names)}"
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def _ratio(counted: int, told: int) -> float:
    return counted / told if told else 1.0
