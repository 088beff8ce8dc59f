"""Holds the books against what steps really execute.

What a batch costs is told by its graph before it is run.  Whether that is true shows when it is
run: so the first batches of a run are counted, operation by operation, and the first after each
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
from contextlib import ExitStack, contextmanager, nullcontext
from functools import wraps
from typing import Any
from weakref import ref

import torch

from greentrainer.cost import flop_counter, is_tracing
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
        return {
            "known": sorted(self.known), "scales": list(self.scales), "ratio": self.ratio,
            "due": self._due, "last": self._last,
        }  # fmt: skip

    def go_on(self, state: Mapping[str, Any]) -> None:
        """As it was when the run was saved."""
        if not state:  # of a release that counted nothing
            return
        self.known = set(state["known"])
        forward, backward = state["scales"]
        self.scales = forward, backward
        self._due, self._last = state["due"], state["last"]
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

    def forward_begins(self) -> None:
        """The forward pass of a training batch, and what is done for it."""
        if self._is_due() and self._counter is None:
            self._begin()
            self._forward = ExitStack()
            self._forward.enter_context(self._counting(0))

    def told(self, forward: int, backward: int) -> None:
        """FLOPs of the batch's two passes, by its graph."""
        if self._counter is not None:
            self._told = forward, backward

    def forward_ends(self) -> None:
        """Also where it ended in an error."""
        if self._forward is not None:
            forward, self._forward = self._forward, None
            forward.close()

    def settle(self) -> None:
        """The batch is over: hold the books against it.  Raises what `found` does."""
        _forget(self)
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
        _forget(self)
        self._told, self.enabled = None, False

    def _is_due(self) -> bool:
        late = self._ledger().batches - self._last >= APART
        return self.enabled and (self._due or late)

    def _begin(self) -> None:
        self._told, self._counted, self._passes = None, [0, 0], 0
        _wait_for(self)

    @contextmanager
    def backward_pass(self) -> Iterator[None]:
        """In here gradients are computed: of the batch, if that is noticed (`gradient_came`)."""
        if self._told is None or self._backward:
            yield
            return
        self._backward, before, passes = True, list(self._counted), self._passes
        try:
            with self._counting(1):
                yield
        finally:
            self._backward = False
            if self._passes == passes:
                self._counted = before

    def gradient_came(self) -> None:
        """The backward pass under way is that of the batch."""
        self._passes += 1

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


_waiting: list["ref[Verifier]"] = []
"""Those whose batch is being counted, the newest last; meanwhile torch's backward is ours."""
_plain = torch.autograd.backward


@wraps(_plain)
def _seen_backward(*args: Any, **kwargs: Any) -> None:
    alive = [one for one in (held() for held in _waiting) if one is not None]
    with alive[-1].backward_pass() if alive and not is_tracing() else nullcontext():
        _plain(*args, **kwargs)


def _wait_for(verifier: Verifier) -> None:
    _forget(verifier)
    _waiting.append(ref(verifier))
    torch.autograd.backward = _seen_backward


def _forget(verifier: Verifier) -> None:
    """It waits no more, nor do those that are gone."""
    _waiting[:] = [held for held in _waiting if held() not in (None, verifier)]
    if not _waiting and torch.autograd.backward is _seen_backward:
        torch.autograd.backward = _plain


def key_of(chosen: Selection) -> str:
    """What tells a selection apart, in short."""
    told = f"{chosen.tail} {chosen.part} {sorted(chosen.names)}"
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def _ratio(counted: int, told: int) -> float:
    return counted / told if told else 1.0
