"""From a model and a batch to a `CostGraph`: one fake forward pass, one fake backward pass.

Under fake tensors nothing is computed and no weight is read, so a model on the meta device will do.
The forward pass builds autograd's graph.  The backward pass is then run once for all parameters,
with a hook before and after every node, and each matrix operation met in between is charged to the
operands whose gradients it helped to compute.  What autograd would skip for a frozen operand is
thus what the cost graph leaves out.

How autograd's graph becomes nodes with precedence (`assemble.py`):

* an operand's cost goes to the node that the gradient is passed to;
* an operation that serves several operands at once (fused attention, a custom function) becomes a
  node of its own between its operation and these operands, paid once if any of them is needed;
* the recomputation of a checkpointed region stops where the last needed activation was saved, so it
  becomes a chain of nodes, one for each such place, above the operations of the region.

Two things make the graph itself depend on more than shapes.  Attention picks another kernel when
its mask needs a gradient (a learned position bias): the graph with these tensors frozen is traced
too, and `CostGraph.variants` holds it.  Models whose shapes depend on data cannot be faked: for
these the same walk is made on one real pass.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn
from torch._C._autograd import _get_sequence_nr
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import Node, get_gradient_edge
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only
from torch.utils.checkpoint import CheckpointFunction

from greentrainer.cost.assemble import Walk, assemble
from greentrainer.cost.blank import (
    alias,
    blank,
    device_of,
    holding,
    state_of,
    uncollected,
    uncompiled,
    unseen,
)
from greentrainer.cost.draws import CertainDraws
from greentrainer.cost.functions import Call, asked, calls_noted
from greentrainer.cost.record import Recorder, Window
from greentrainer.cost.values import Values
from greentrainer.model import attributes_preserved, require_in_one_place, stages
from greentrainer.types import Batch, CostGraph, LossFn, loss_of

Started = list[tuple[int, int]]
"""Sequence number of the next operation, and FLOPs so far, when a module began."""

_REAL = "shapes depend on the data, so the cost was counted on a real pass over this very batch"


Work = Callable[[int], int]
"""What is made of the FLOPs of one operation, before they are added up."""


def trace(
    model: nn.Module, batch: Batch, loss_fn: LossFn | None = None, work: Work | None = None
) -> CostGraph:
    """The exact cost of a backward pass for this batch's shapes, for any set of tensors.

    In FLOPs: the paper's t_dw and t_dy (section 3.2), for any graph of operations.
    The tensors are the parameters that require a gradient and that the loss depends on.  Works from
    a real, meta or fake model; weights, gradients, buffers and random streams stay as they were.
    Batch: a mapping passed as `model(**batch)` with `.loss`, or anything together with
    `loss_fn(model, batch)`.  With `work` no real pass is made where shapes depend on data.

    Raises ValueError for a model with nothing to train or in several places, for reentrant
    activation checkpointing, and for a model on the meta device, or with `work`, whose shapes
    depend on data.
    """
    require_in_one_place(model)
    names = frozenset(name for name, p in model.named_parameters() if p.requires_grad)
    if not names:
        raise ValueError("the model has no trainable parameters: set requires_grad on some")
    return _trace_variants(model, batch, loss_fn, names, {}, work)


def _trace_variants(
    model: nn.Module,
    batch: Batch,
    loss_fn: LossFn | None,
    trainable: frozenset[str],
    done: dict[frozenset[str], CostGraph],
    work: Work | None,
) -> CostGraph:
    """The graph when `trainable` may be trained, and those with a learned mask frozen below it."""
    if trainable not in done:
        walk, notes = _walk(model, batch, loss_fn, trainable, work)
        variants = tuple(
            (mask, _trace_variants(model, batch, loss_fn, trainable - mask, done, work))
            for mask in sorted(walk.learned_masks(), key=sorted)
            if trainable - mask
        )
        done[trainable] = assemble(walk, variants, notes)
    return done[trainable]


def _walk(
    model: nn.Module,
    batch: Batch,
    loss_fn: LossFn | None,
    trainable: frozenset[str],
    work: Work | None,
) -> tuple[Walk, tuple[str, ...]]:
    for values in (Values(), Values(numbers=True)):
        try:
            with unseen(), FakeTensorMode(allow_non_fake_inputs=True) as mode:
                home = device_of(batch)
                state = {name: blank(tensor, home) for name, tensor in state_of(model).items()}
                blank_batch = tree_map_only(torch.Tensor, partial(blank, home=home), batch)
                values.begin(blank_batch, batch)
                tracer = _Tracer(model, state, trainable, mode, work, values)
                return tracer.run(blank_batch, loss_fn), ()
        except Exception as error:  # whatever is made of a number without a value
            if values.numbers and not isinstance(error, RuntimeError):
                raise
            refused = error  # every refusal of fake tensors; a user's mistake comes again
    if work is not None or any(p.is_meta for p in model.parameters()):
        raise ValueError(
            "the model's shapes depend on its data, or it uses an operation that cannot be "
            "traced without values: load its weights before tracing it"
        ) from refused
    state = {name: alias(tensor) for name, tensor in state_of(model).items()}
    with _random_streams_kept():
        return _Tracer(model, state, trainable, None, None, None).run(batch, loss_fn), (_REAL,)


@contextmanager
def _random_streams_kept() -> Iterator[None]:
    devices = list(range(torch.cuda.device_count()))
    with torch.random.fork_rng(devices=devices):
        yield


class _GradientWatcher(TorchFunctionMode):
    """Notes where gradients are demanded by other things than trained parameters.

    masks: nodes that make an attention mask which needs a gradient.
    forced: nodes whose output the model told to require one, whatever is trained.
    """

    def __init__(self) -> None:
        super().__init__()
        self.masks: set[Node] = set()
        self.forced: set[Node] = set()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if func is torch.Tensor.requires_grad_ and out.requires_grad:
            self.forced.add(get_gradient_edge(out).node)
        elif func is torch.nn.functional.scaled_dot_product_attention:
            mask = kwargs.get("attn_mask", args[3] if len(args) > 3 else None)
            if mask is not None and mask.requires_grad:
                self.masks.add(get_gradient_edge(mask).node)
        return out


class _Tracer:
    """One traced training step."""

    def __init__(
        self,
        model: nn.Module,
        state: dict[str, torch.Tensor],
        trainable: frozenset[str],
        mode: FakeTensorMode | None,
        work: Work | None,
        values: Values | None,
    ) -> None:
        self.model, self.state, self.mode = model, state, mode
        for name in trainable:
            state[name].requires_grad_()
            state[name].register_post_accumulate_grad_hook(_discard_gradient)
        self.names = {id(state[name]): name for name in trainable}
        self.recorder = Recorder(work or int, values)
        self.walk = Walk(recorder=self.recorder)

    def run(self, batch: Batch, loss_fn: LossFn | None) -> Walk:
        watcher = _GradientWatcher()
        with ExitStack() as stack:
            _running.append(self)
            stack.callback(_running.pop)
            stack.enter_context(uncompiled())
            if self.mode is not None:
                stack.enter_context(uncollected())
                stack.enter_context(CertainDraws())
            stack.enter_context(attributes_preserved(self.model))
            stack.enter_context(holding(self.model, self.state))
            stack.enter_context(torch.enable_grad())
            stack.callback(self._watch_modules(self.model))
            calls = stack.enter_context(calls_noted())
            stack.enter_context(self.recorder)
            with watcher:
                loss = loss_of(self.model, batch, loss_fn)
            self._backward(loss)
            self._ask(calls)
        if self.recorder.values is not None:
            self.walk.questions = self.recorder.values.questions()
        self.walk.masks = watcher.masks
        self.walk.forced |= watcher.forced
        return self.walk

    def _watch_modules(self, model: nn.Module) -> Callable[[], None]:
        """Note the range of operations that each module runs."""
        handles = []
        in_order = set(stages(model))
        for name, module in model.named_modules():
            started: Started = []

            def enter(_m: Any, _a: Any, started: Started = started) -> None:
                started.append((_get_sequence_nr(), self.recorder.forward_flops))

            def leave(
                _m: Any,
                _a: Any,
                _o: Any,
                name: str = name,
                started: Started = started,
            ) -> None:
                if not self.recorder.backward:
                    first, before = started.pop()
                    self.walk.spans.append((name, first, _get_sequence_nr()))
                    if name in in_order:
                        flops = self.recorder.forward_flops - before
                        self.walk.stages.append((name, flops, torch.is_grad_enabled()))

            handles += [
                module.register_forward_pre_hook(enter),
                module.register_forward_hook(leave),
            ]

        def remove() -> None:
            for handle in handles:
                handle.remove()

        return remove

    def _backward(self, loss: torch.Tensor) -> None:
        if loss.grad_fn is None:
            raise ValueError("the loss depends on no trainable parameter")
        if loss.numel() != 1:
            raise ValueError(f"the loss must be one number, not of shape {tuple(loss.shape)}")
        handles = []
        for node in _reachable(loss.grad_fn):
            if isinstance(node, getattr(CheckpointFunction, "_backward_cls")):  # noqa: B009
                raise ValueError(
                    "reentrant activation checkpointing hides the parameters inside it: "
                    "use use_reentrant=False"
                )
            handles += [node.register_prehook(self._open(node)), node.register_hook(self._close)]
        self.recorder.backward = True
        torch.autograd.backward(loss)
        for handle in handles:
            handle.remove()

    def _ask(self, calls: Mapping[Node, Call]) -> None:
        """Put what functions say of themselves in the place of what they were seen to do."""
        for number, step in enumerate(self.walk.steps):
            call, wanted = calls.get(step.node), step.wanted
            found = asked(call, step.handed, wanted, self.recorder) if call and wanted else None
            if found is not None:
                self.walk.steps[number] = replace(step, charges=found.charges)
                self.recorder.forward_flops += found.forward_flops - found.traced_flops

    def _open(self, node: Node) -> Callable[..., None]:
        def opened(grad_outputs: tuple[Any, ...]) -> None:
            self.recorder.window = Window(node)
            self.recorder.window.receive(grad_outputs)

        return opened

    def _close(self, grad_inputs: tuple[Any, ...], _grad_outputs: Any) -> None:
        window = self.recorder.window
        assert window is not None
        variable: Any = getattr(window.node, "variable", None)
        self.walk.steps.append(window.close(grad_inputs))
        if id(variable) in self.names:
            self.walk.leaves.append((self.names[id(variable)], window.node, variable.numel()))
        elif variable is not None:
            self.walk.forced.add(window.node)
        self.recorder.window = None


_running: list[_Tracer] = []


def is_tracing() -> bool:
    """Whether a trace is being made: what runs now is no step of anybody's."""
    return bool(_running)


def _discard_gradient(parameter: torch.Tensor) -> None:
    parameter.grad = None


def _reachable(root: Node) -> list[Node]:
    seen, stack, order = {root}, [root], []
    while stack:
        node = stack.pop()
        order.append(node)
        for child, _ in node.next_functions:
            if child is not None and child not in seen:
                seen.add(child)
                stack.append(child)
    return order
