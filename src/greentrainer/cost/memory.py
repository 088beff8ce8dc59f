"""What a training step keeps in memory, told from one pass under fake tensors.

Every storage that an operation makes is followed from its making to its end, so the peak is that of
the step itself: activations, gradients and whatever is in between, whole logits too.  No weight is
read.  What an allocator adds (rounding, fragments) and workspaces inside of kernels are not seen.
"""

import weakref
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from greentrainer.cost.blank import faked
from greentrainer.types import Batch, LossFn, loss_of, taken

MOMENTS = 2
"""Values that AdamW keeps for each element trained, in the element's own precision."""


@dataclass(frozen=True)
class Memory:
    """Bytes at the peak of a training step, by what they are for.

    gradients: of the tensors trained.  optimizer: two moments of every tensor trained so far.
    activations: what else the step holds at its peak.
    probe: what the first probe holds besides weights, where there is one.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    probe: int = 0

    @property
    def total(self) -> int:
        """Of the run: of a step, or of the probe if that holds more."""
        step = self.gradients + self.optimizer + self.activations
        return self.weights + max(step, self.probe)


class _Alive(TorchDispatchMode):
    """Follows the storages that operations make."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._known: dict[int, Any] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in tree_iter(out):
            if isinstance(value, torch.Tensor):
                self._note(value.untyped_storage())
        return out

    def ignore(self, tensor: torch.Tensor) -> None:
        """Do not count a tensor that was there before."""
        self._known[tensor.untyped_storage()._cdata] = None

    def _note(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self.now += size
        self.peak = max(self.peak, self.now)

        def gone(_: Any) -> None:
            self.now -= size
            del self._known[key]

        self._known[key] = weakref.ref(storage, gone)


def step_memory(
    model: nn.Module,
    batch: Batch,
    names: Collection[str],
    loss_fn: LossFn | None = None,
    trained_before: Collection[str] = (),
    in_backward: bool = False,
    accumulating: bool = False,
    moments: float = MOMENTS,
) -> Memory:
    """Memory of a step that trains `names`, with AdamW.

    trained_before: tensors whose optimizer state is kept besides theirs.  in_backward: updates are
    made as gradients arrive, which are freed at once.  accumulating: they are added to those of an
    earlier batch, which are there all along.  moments: bytes of the optimizer's state for each byte
    of a tensor that is trained.
    """
    parameters = dict(model.named_parameters())
    state = {*names, *trained_before}
    weights = sum(_bytes(t) for t in _whole(model))
    gradients = 0 if in_backward else sum(_bytes(parameters[n]) for n in names)
    optimizer = round(moments * sum(_bytes(parameters[n]) for n in state))
    gone = in_backward or accumulating
    peak = _peak(model, batch, names, loss_fn, _freed if gone else None)
    return Memory(weights, gradients, optimizer, max(0, peak if accumulating else peak - gradients))


def pass_memory(model: nn.Module, batch: Batch, loss_fn: LossFn | None = None) -> int:
    """Bytes at the peak of an evaluation of one batch, besides weights."""
    return _peak(model, batch, (), loss_fn)


def rows_that_fit(model: nn.Module, batch: Batch, loss: LossFn | None, most: int, room: int) -> int:
    """Of a batch, rows at a time whose evaluation fits: `most`, or a half of that, ..., or 1."""
    while most > 1 and pass_memory(model, taken(batch, slice(most)), loss) > room:
        most //= 2
    return most


def probe_memory(
    model: nn.Module, batch: Batch, names: Collection[str], loss_fn: LossFn | None = None
) -> int:
    """Bytes at the peak of a probe of `names`, besides weights.

    Gradients are gone as soon as the twin of the optimizer has stepped: with each there are, for a
    moment, a copy of it, one of the weight, and AdamW's two moments.
    """
    return _peak(model, batch, names, loss_fn, _stepped)


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _freed(parameter: torch.Tensor) -> None:
    parameter.grad = None


def _stepped(parameter: torch.Tensor) -> None:
    copies = [torch.empty_like(parameter) for _ in range(4)]
    parameter.grad = None
    copies.clear()


def _whole(model: nn.Module) -> list[torch.Tensor]:
    return [*model.parameters(), *model.buffers()]


def _peak(
    model: nn.Module,
    batch: Batch,
    names: Collection[str],
    loss_fn: LossFn | None,
    arrived: Callable[[torch.Tensor], None] | None = None,
) -> int:
    """Bytes made in a step and alive together.  arrived: what is done with each gradient."""
    with FakeTensorMode(allow_non_fake_inputs=True), faked(model, batch, names) as (state, fake):
        for name in names if arrived else ():
            state[name].register_post_accumulate_grad_hook(arrived)
        alive = _Alive()
        for tensor in [*state.values(), *tree_iter(fake)]:
            if isinstance(tensor, torch.Tensor):
                alive.ignore(tensor)
        with alive, torch.set_grad_enabled(bool(names)):
            loss = loss_of(model, fake, loss_fn)
            if names:
                loss.backward()
    return alive.peak
