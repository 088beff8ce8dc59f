"""Watches one training step operation by operation and attributes its FLOPs.

`Recorder` sees every operation below autograd.  In the forward pass it notes when each ran; in the
backward pass, while one node of autograd's graph is open, it follows which of the node's results
each matrix operation went into.
"""

from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch._C._autograd import _get_sequence_nr, _top_saved_tensors_default_hooks
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import Node
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from greentrainer.cost.flops import count_by_output, count_flops, formula_of, has_uncounted_work
from greentrainer.cost.values import Values


@dataclass(frozen=True)
class Step:
    """What one node of the backward pass did.

    charges: FLOPs, and the operands (positions in `next_functions`) that they served.
    recalling: operands whose gradient takes an activation kept from the forward pass.
    wanted: all operands that a gradient was passed to.
    handed: the gradients that a custom function was handed; nothing for others.
    """

    node: Node
    charges: tuple[tuple[int, tuple[int, ...]], ...]
    recalling: tuple[int, ...]
    wanted: tuple[int, ...] = ()
    handed: tuple[Any, ...] = ()


_DEVICE = torch.ops.prim.device.default
_KEPT = -1
"""Stands among operation numbers for a tensor that comes from the forward pass."""


@dataclass
class Window:
    """What happens while one node of the backward pass runs."""

    node: Any
    flops: list[int] = field(default_factory=list)
    reaches: dict[int, frozenset[int]] = field(default_factory=dict)
    alive: list[Any] = field(default_factory=list)
    handed: tuple[Any, ...] = ()

    def receive(self, gradients: tuple[Any, ...]) -> None:
        """Note the gradients handed down: they depend on nothing kept."""
        self.handed = gradients
        for gradient in gradients:
            self.reaches[id(gradient)] = frozenset()
            self.alive.append(gradient)

    def feed(self, inputs: Any, outputs: list[torch.Tensor], own: list[list[int]]) -> None:
        """Note that `outputs` depend on `inputs` and on the operations numbered in `own`."""
        kept = frozenset({_KEPT})
        before = frozenset[int]().union(
            *(self.reaches.get(id(t), kept) for t in tree_iter(inputs) if _is_tensor(t))
        )
        for tensor, operations in zip(outputs, own, strict=True):
            self.reaches[id(tensor)] = before.union(operations)
            self.alive.append(tensor)

    def close(self, results: tuple[Any, ...]) -> Step:
        """Charge the FLOPs of this node to the operands that need them.

        A custom function may compute all gradients together, so it is charged as a whole, until it
        is asked (`functions.py`).
        """
        wanted = tuple(i for i, (child, _) in enumerate(self.node.next_functions) if child)
        if _is_custom(self.node):
            whole = tuple((f, wanted) for f in self.flops if f)
            return Step(self.node, whole, wanted, wanted, self.handed)
        served: dict[int, list[int]] = defaultdict(list)
        for i in wanted:
            for operation in self.reaches.get(id(results[i]), ()):
                served[operation].append(i)
        charges = tuple((f, tuple(served.get(o, wanted))) for o, f in enumerate(self.flops) if f)
        return Step(self.node, charges, tuple(served[_KEPT]))


def _is_custom(node: Any) -> bool:
    """Whether this is the backward pass of a `torch.autograd.Function` written in Python."""
    return isinstance(node, BackwardCFunction)


def _is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor)


def _left_out(before: list[Any], again: list[Any]) -> set[int] | None:
    """Which operations of a region were not run again; None where what was run is no part of it."""
    left, found = deque(again), set()
    for place, packet in enumerate(before):
        if left and left[0] is packet:
            left.popleft()
        else:
            found.add(place)
    return None if left else found


class Recorder(TorchDispatchMode):
    """Counts the operations of one training step; forward until `backward` is set.

    work: what is made of the FLOPs of an operation.
    values: answers what the model asks of its batch, where there are none to look at.
    """

    def __init__(self, work: Callable[[int], int], values: Values | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.work, self.values = work, values
        self._aside: list[tuple[Any, int]] | None = None
        self.forward_flops = 0
        self._regions: dict[Any, list[tuple[int, int, Any]]] = defaultdict(list)
        self._again: dict[Any, list[Any]] = defaultdict(list)
        self.uncounted: set[str] = set()
        self.backward = False
        self.window: Window | None = None

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run one operation, or the simpler ones it is made of, and count it."""
        if func is _DEVICE:  # asked so often that it is two thirds of all operations
            return args[0].fake_device if isinstance(args[0], FakeTensor) else func(*args)
        kwargs = kwargs or {}
        packet = func.overloadpacket
        if self.values is not None:
            told = self.values.answer(func, args, kwargs)
            if told is not NotImplemented:
                return told
        if formula_of(packet) is None:
            with self:
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        out = func(*args, **kwargs)
        if self.values is not None:
            self.values.follow(func, args, kwargs, out)
        if has_uncounted_work(packet):
            self.uncounted.add(str(packet))
        if self._aside is not None:
            self._aside.append((packet, count_flops(packet, args, kwargs, out)))
        elif not self.backward:
            self._count_forward(packet, self.work(count_flops(packet, args, kwargs, out)))
        elif self.window is not None and not self._recomputing():
            self._count_backward(packet, args, kwargs, out)
        elif self.window is not None:
            hooks = _top_saved_tensors_default_hooks(False)
            self._again[hooks and hooks[0]].append(packet)
        return out

    @contextmanager
    def aside(self) -> Iterator[list[tuple[Any, int]]]:
        """What runs in here is no part of the step; gives each operation and its FLOPs."""
        before, self._aside = self._aside, []
        try:
            yield self._aside
        finally:
            self._aside = before

    def _count_forward(self, packet: Any, flops: int) -> None:
        self.forward_flops += flops
        hooks = _top_saved_tensors_default_hooks(False)
        if hooks is not None:
            self._regions[hooks[0]].append((_get_sequence_nr(), flops, packet))

    def regions(self) -> list[list[tuple[int, int]]]:
        """Of each checkpointed region the times of its operations, and their FLOPs when it is
        recomputed: none where an output was kept (selective checkpointing).

        Regions are recomputed last ones first; what was run then is what was run before, without
        what was kept.
        """
        runs = list(self._again.values())
        found = []
        for operations in reversed(self._regions.values()):
            before = [packet for _, _, packet in operations]
            matches = ((run, _left_out(before, run)) for run in runs)
            run, kept = next(((r, k) for r, k in matches if k is not None), (None, set[int]()))
            if run is not None:
                runs.remove(run)
            found.append([(at, 0 if i in kept else f) for i, (at, f, _) in enumerate(operations)])
        return found[::-1]

    def _count_backward(self, packet: Any, args: Any, kwargs: Any, out: Any) -> None:
        window = self.window
        assert window is not None
        outputs = [t for t in tree_iter(out) if _is_tensor(t)]
        apart = count_by_output(packet, args, kwargs, out)
        first = len(window.flops)
        if apart is None:
            flops = self.work(count_flops(packet, args, kwargs, out))
            window.flops += [flops] if flops else []
            own = [[first] if flops else []] * len(outputs)
        else:
            window.flops += [self.work(flops) for flops in apart]
            kept = [i for i, t in enumerate(out) if _is_tensor(t)]
            own = [[first + i] for i in kept]
        window.feed((args, kwargs), outputs, own)

    def _recomputing(self) -> bool:
        """A built-in node computes with gradients on only where a checkpoint is recomputed."""
        assert self.window is not None
        return torch.is_grad_enabled() and not _is_custom(self.window.node)
