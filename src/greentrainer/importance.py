"""The probe: what each tensor's own update would do to the loss, without a trace in the run.

`I[k] = -sum(delta_w * dL/dw)` over the elements of tensor k (section 3.1 of the paper): how much
the update that the optimizer would make now lowers the loss, to first order.

Gradients are not collected.  As each one arrives, a twin of the user's optimizer steps a copy of
that one tensor, with a copy of its state; the product of update and gradient is summed, and all
three are freed.  So any optimizer works that updates one tensor at a time, and the extra memory is
a few times the largest tensor.

The paper's own form takes two passes: all tensors are updated, and the gradients are those at the
new weights on the same batch (`metric="two_pass"`); it needs a second copy of the probed weights.

A warm-up starts at a learning rate of exactly 0, where every update and so every importance would
be 0.  A param group whose `lr` is 0 is therefore updated with its `initial_lr`, which torch's
schedulers put there: to first order tensors come in the same order at any rate.
"""

import copy
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import astuple
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from greentrainer.snapshot import preserved
from greentrainer.types import Batch, LossFn, Tail, TensorStatistics, loss_of

CHUNK = 1 << 20
"""Elements turned to float64 at a time."""

REMEMBERED = 1 << 18
"""Elements of a tensor's whole gradient that are remembered while gradients of tails are taken."""

Visitor = Callable[[str, nn.Parameter, torch.Tensor], None]
"""Called with a tensor's name, the tensor and its gradient as the gradient arrives."""


def measure_importance(
    model: nn.Module,
    batches: Iterable[Batch],
    optimizer: torch.optim.Optimizer,
    loss_fn: LossFn | None = None,
    tensors: Iterable[str] | None = None,
    *,
    metric: str = "first_order",
) -> dict[str, float]:
    """Importance `I[k]` of each tensor, in units of the loss, averaged over the batches.

    tensors: names to probe; by default all that require a gradient.  One that the loss does not
        depend on gets 0.
    metric: "first_order" at the current weights, or the paper's "two_pass".

    Weights, gradients, optimizer state, buffers, modes and random streams are left bit-identical.
    Of a model cut into shards by FSDP2 the importance is that of whole tensors; all processes
    measure together, in one pass.  Raises ValueError if there is no batch or nothing to probe, if a
    name is unknown or held by no param group, if a loss is not one finite number, or if the
    optimizer needs a closure or is a wrapper around another one.
    """
    if metric not in ("first_order", "two_pass"):
        raise ValueError(f"metric is {metric!r}: choose first_order or two_pass")
    if isinstance(optimizer, torch.optim.LBFGS):
        raise ValueError("LBFGS steps all tensors at once through a closure: use another one")
    if "param_groups" not in vars(optimizer):  # its twin would share state with the wrapped one
        raise ValueError(f"{type(optimizer).__name__} wraps another optimizer: pass that one")
    parameters = _probed(model, tensors)
    groups = _groups(optimizer, parameters)
    if metric == "two_pass" and any(isinstance(p, DTensor) for p in parameters.values()):
        raise ValueError("two_pass swaps weights, which shards do not allow: use first_order")
    total = dict.fromkeys(parameters, 0.0)

    def first_order(name: str, parameter: nn.Parameter, gradient: torch.Tensor) -> None:
        updated = _updated(optimizer, groups[name], parameter, gradient)
        total[name] -= _dot_of_change(parameter, updated, gradient)

    def two_pass(batch: Batch, number: int) -> None:
        new: dict[str, torch.Tensor] = {}

        def update(name: str, parameter: nn.Parameter, gradient: torch.Tensor) -> None:
            new[name] = _updated(optimizer, groups[name], parameter, gradient)

        _visit(model, batch, number, loss_fn, parameters, update)
        with _weights(parameters, new) as old:

            def judge(name: str, parameter: nn.Parameter, gradient: torch.Tensor) -> None:
                if name in old:
                    total[name] -= _dot_of_change(old[name], parameter, gradient)

            _visit(model, batch, number, loss_fn, parameters, judge)

    seen = 0
    with preserved(model, parameters.keys()):
        for seen, batch in enumerate(batches, 1):
            if metric == "two_pass":
                two_pass(batch, seen)
            else:
                _visit(model, batch, seen, loss_fn, parameters, first_order)
    _require_batches(seen)
    return {name: value / seen for name, value in _whole(total, parameters).items()}


def measure_tails(
    model: nn.Module,
    batches: Iterable[Batch],
    optimizer: torch.optim.Optimizer,
    loss_fn: LossFn | None,
    passes: Mapping[Tail, Sequence[str]],
    at: Callable[[Tail], AbstractContextManager[None]],
) -> dict[Tail, dict[str, float]]:
    """Importance of each tensor with gradient through tails of some lengths.

    `I[k](tail) = -sum(delta_w(tail) * dL/dw)`: the update made from the gradient of the tail's
    positions, judged by the whole gradient.

    passes: for each tail, and first for the whole (None), names of tensors.  All must be in the
        whole's.
    at: makes the context in which gradient passes through such a tail.

    One pass gives the whole gradient and one each those of the tails.  Of the whole gradient of a
    tensor at most `REMEMBERED` elements, evenly spaced, are remembered; of a larger tensor the sum
    is estimated from these.  Leaves no trace either.  Raises ValueError as `measure_importance`.
    """
    whole = _probed(model, passes[None])
    groups = _groups(optimizer, whole)
    total = {tail: dict.fromkeys(names, 0.0) for tail, names in passes.items()}
    remembered: dict[str, torch.Tensor] = {}

    def judge(name: str, parameter: nn.Parameter, gradient: torch.Tensor) -> None:
        remembered[name] = _spaced(gradient).clone()
        updated = _updated(optimizer, groups[name], parameter, gradient)
        total[None][name] -= _dot_of_change(parameter, updated, gradient)

    def of(tail: Tail) -> Visitor:
        def visit(name: str, parameter: nn.Parameter, gradient: torch.Tensor) -> None:
            if name in remembered:
                updated = _updated(optimizer, groups[name], parameter, gradient)
                known = remembered[name]
                share = known.numel() / parameter.numel()
                change = _dot_of_change(_spaced(parameter), _spaced(updated), known)
                total[tail][name] -= change / share

        return visit

    seen = 0
    for seen, batch in enumerate(batches, 1):
        for tail, names in passes.items():
            probed = {name: whole[name] for name in names}
            with preserved(model, probed.keys()), at(tail):
                _visit(model, batch, seen, loss_fn, probed, judge if tail is None else of(tail))
        remembered.clear()
    _require_batches(seen)
    return {tail: {n: value / seen for n, value in own.items()} for tail, own in total.items()}


def measure_statistics(
    model: nn.Module,
    batches: Iterable[Batch],
    loss_fn: LossFn | None = None,
    tensors: Iterable[str] | None = None,
) -> dict[str, TensorStatistics]:
    """What the control selectors score by, averaged over the batches; leaves no trace either."""
    parameters = _probed(model, tensors)
    sums = {name: [0.0] * 4 for name in parameters}

    def note(name: str, parameter: nn.Parameter, gradient: torch.Tensor) -> None:
        values = astuple(_statistics(parameter, gradient))
        sums[name] = [total + value for total, value in zip(sums[name], values, strict=True)]

    seen = 0
    with preserved(model, parameters.keys()):
        for seen, batch in enumerate(batches, 1):
            _visit(model, batch, seen, loss_fn, parameters, note)
    _require_batches(seen)
    return {name: TensorStatistics(*(v / seen for v in values)) for name, values in sums.items()}


def _spaced(tensor: torch.Tensor) -> torch.Tensor:
    """At most `REMEMBERED` elements of a tensor."""
    flat = tensor.detach().reshape(-1)
    return flat[:: -(-flat.numel() // REMEMBERED)]


def _probed(model: nn.Module, tensors: Iterable[str] | None) -> dict[str, nn.Parameter]:
    parameters = dict(model.named_parameters())
    if tensors is None:
        chosen = {name: p for name, p in parameters.items() if p.requires_grad}
    else:
        names = list(tensors)
        for name in names:
            if name not in parameters:
                raise ValueError(f"the model has no tensor {name!r} to measure")
        chosen = {name: parameters[name] for name in names}
    if not chosen:
        raise ValueError("there is no tensor to measure: set requires_grad on some")
    return chosen


def _groups(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]
) -> dict[str, dict[str, Any]]:
    """Tensor name -> the param group that holds it."""
    holder = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in parameters.items():
        if id(parameter) not in holder:
            raise ValueError(f"tensor {name!r} is in no param group: give it to the optimizer")
    return {name: holder[id(parameter)] for name, parameter in parameters.items()}


def _require_batches(seen: int) -> None:
    if not seen:
        raise ValueError("there is no batch to measure on: pass at least one")


def _visit(
    model: nn.Module,
    batch: Batch,
    number: int,
    loss_fn: LossFn | None,
    parameters: Mapping[str, nn.Parameter],
    visitor: Visitor,
) -> None:
    """One backward pass; each gradient is shown to the visitor as it arrives, then freed."""
    with _arriving(parameters, visitor):
        loss = loss_of(model, batch, loss_fn)
        if loss.numel() != 1:
            raise ValueError(f"the loss must be one number, not of shape {tuple(loss.shape)}")
        if not math.isfinite(float(loss.detach())):
            raise ValueError(
                f"the loss of batch {number} is {float(loss.detach())}: "
                "check the data and the learning rate"
            )
        if loss.requires_grad:
            loss.backward()
    for name, parameter in parameters.items():  # gradients that came without a hook, as of shards
        if parameter.grad is not None:
            gradient, parameter.grad = parameter.grad, None
            visitor(name, parameter, gradient)


def _whole(
    values: Mapping[str, float], parameters: Mapping[str, nn.Parameter]
) -> Mapping[str, float]:
    """Values that each process has of its own shards -> those of whole tensors."""
    meshes = [p.device_mesh for p in parameters.values() if isinstance(p, DTensor)]
    if not meshes:
        return values
    device = meshes[0].device_type
    summed = torch.tensor(list(values.values()), dtype=torch.float64, device=device)
    for group in meshes[0].get_all_groups():
        torch.distributed.all_reduce(summed, group=group)
    return dict(zip(values, summed.tolist(), strict=True))


def _local(tensor: torch.Tensor) -> torch.Tensor:
    """This process's shard of a tensor, or the tensor itself."""
    own = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return own.detach().reshape(-1)


@contextmanager
def _arriving(parameters: Mapping[str, nn.Parameter], visitor: Visitor) -> Iterator[None]:
    def hook_for(name: str) -> Callable[[torch.Tensor], None]:
        def arrived(parameter: Any) -> None:
            gradient, parameter.grad = parameter.grad, None
            visitor(name, parameter, gradient)

        return arrived

    handles = [p.register_post_accumulate_grad_hook(hook_for(n)) for n, p in parameters.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _weights(
    parameters: Mapping[str, nn.Parameter], new: Mapping[str, torch.Tensor]
) -> Iterator[dict[str, torch.Tensor]]:
    """The model has the new weights in here; gives the old ones, and puts them back."""
    old = {name: parameters[name].data for name in new}
    try:
        for name, weight in new.items():
            parameters[name].data = weight
        yield old
    finally:
        for name, weight in old.items():
            parameters[name].data = weight


def _updated(
    optimizer: torch.optim.Optimizer,
    group: Mapping[str, Any],
    parameter: nn.Parameter,
    gradient: torch.Tensor,
) -> torch.Tensor:
    """The weights after the step that the optimizer would take on this one tensor."""
    weight = nn.Parameter(parameter.detach().clone())
    weight.grad = gradient.clone()
    other = twin(optimizer, group, [weight])
    if parameter in optimizer.state:
        other.state[weight] = copy.deepcopy(optimizer.state[parameter])
    type(optimizer).step(other)
    return weight.detach()


def twin(
    optimizer: torch.optim.Optimizer, group: Mapping[str, Any], weights: list[nn.Parameter]
) -> Any:
    """An optimizer like this one for other weights, with the settings of a group and no state.

    It is made without the constructor, whose arguments are not known.  Step it by the class's own
    `step`: an instance's is left behind, as schedulers put one there that is bound to the original.
    """
    other = object.__new__(type(optimizer))
    other.__dict__.update(optimizer.__dict__)
    other.__dict__.pop("step", None)
    other.__dict__.update(_optimizer_step_pre_hooks={}, _optimizer_step_post_hooks={})
    other.state = defaultdict(dict)
    options = {k: copy.deepcopy(v) for k, v in group.items() if k not in ("params", "param_names")}
    if options.get("lr") == 0:
        options["lr"] = options.get("initial_lr", 0.0)
    other.param_groups = [{**options, "params": weights}]
    return other


@torch.no_grad()
def _dot_of_change(old: torch.Tensor, new: torch.Tensor, gradient: torch.Tensor) -> float:
    """sum((new - old) * gradient), in float64."""
    pieces = zip(*(_local(t).split(CHUNK) for t in (old, new, gradient)), strict=True)
    return math.fsum(float((b.double() - a.double()) @ g.double()) for a, b, g in pieces)


@torch.no_grad()
def _statistics(parameter: torch.Tensor, gradient: torch.Tensor) -> TensorStatistics:
    pieces: Sequence[tuple[torch.Tensor, torch.Tensor]] = list(
        zip(*(t.detach().reshape(-1).split(CHUNK) for t in (parameter, gradient)), strict=True)
    )
    squared = math.fsum(float(g.double() @ g.double()) for _, g in pieces)
    weight = math.fsum(float(w.double() @ w.double()) for w, _ in pieces)
    snip = math.fsum(float(w.double().abs() @ g.double().abs()) for w, g in pieces)
    return TensorStatistics(math.sqrt(squared), math.sqrt(weight), squared, snip)
