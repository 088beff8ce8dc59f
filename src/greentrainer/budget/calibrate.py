"""Setting a clock: a few real passes of the model at hand, timed, and nothing left of them."""

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from greentrainer.budget.clock import Clock, TimedPass, fit, work_of
from greentrainer.energy import Consumption, Used
from greentrainer.forward import tokens_of
from greentrainer.importance import twin
from greentrainer.model import now, preserved
from greentrainer.records import Entry, processor
from greentrainer.types import Batch, CostGraph, LossFn, Tail, loss_of

REPEATS = 2
"""Of each pass; their mean counts."""
DECIDING = 0.05
"""Share of what may be spent that setting a clock may take, but for its first pass."""
UPDATED = 1 << 24
"""Elements whose update is timed."""
STEPS = 4


@dataclass(frozen=True)
class Trial:
    """A way to run the sample batch.

    graph: what it costs.  names: tensors trained.  on: makes the context that it is run in.
    """

    graph: CostGraph
    names: Sequence[str]
    on: Callable[[], AbstractContextManager[None]]


def set_clock(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    loss_fn: LossFn | None,
    trials: Sequence[Trial],
    whole: CostGraph,
    consumption: Consumption,
    lasting: Callable[[float, float], float] = lambda _full, _watts: math.inf,
    agreed: Callable[[Any], Any] = lambda value: value,
) -> tuple[Clock, list[Entry]]:
    """The clock of this model on this device, and what setting it took.

    whole: the graph of a plain batch.  consumption: shows the power meanwhile.
    lasting: for how many seconds the budget will last, told the seconds of a plain batch and the
        power in watts.  Where `DECIDING` of it does not pay for all passes, each is made once; if
        that is too much too, all work is taken to go as fast as in the first pass, and the clock
        is of no use to another run (its `tokens` are 0).
    agreed: what all processes take for how often passes are made.

    Weights, gradients, optimizer state, buffers, modes and random streams stay as they were.
    """
    start, before = time.perf_counter(), consumption.used()
    device = next(model.parameters()).device
    largest = max(trials, key=lambda trial: sum(_flops(trial)))
    executed = [largest]
    if device.type == "cuda":  # kernels are loaded in the very first
        _timed(model, batch, loss_fn, largest, 1)
        executed.append(largest)
    first = [_timed(model, batch, loss_fn, largest, 1)]
    update = _update_seconds(model, optimizer)
    rough = fit(first, whole, update, device_name(device))
    warming = [trial for trial in _warming(trials, device) if trial is not largest]
    once = sum(rough.passes(work_of(trial.graph, trial.names)) for trial in trials)
    allowed = DECIDING * lasting(rough.seconds(whole), _watts(consumption, before))
    allowed -= time.perf_counter() - start + once * len(warming) / len(trials)
    repeats = agreed(next((n for n in range(REPEATS, 0, -1) if n * once <= allowed), 0))
    if repeats:
        for trial in warming:
            _timed(model, batch, loss_fn, trial, 1)
        passes = [_timed(model, batch, loss_fn, trial, repeats) for trial in trials]
        clock = fit(passes, whole, update, device_name(device))
        clock = replace(clock, tokens=tokens_of(batch)[1])
        executed += [*warming, *(trial for trial in trials for _ in range(repeats))]
    else:
        clock = rough
    spent = [
        *(_entry(trial) for trial in executed),
        Entry("trace", seconds=time.perf_counter() - start),
    ]
    return replace(clock, watts=_watts(consumption, before)), spent


def _watts(consumption: Consumption, before: Used) -> float:
    """Mean power since then."""
    after = consumption.used()
    seconds = after.seconds - before.seconds
    return (after.joules - before.joules) / seconds if seconds > 0 else 0.0


def device_name(device: torch.device) -> str:
    """What was measured on: a GPU's name, or the processor and its threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{processor()}, {torch.get_num_threads()} threads"


def trials_of(
    samples: Mapping[Tail, CostGraph], at: Callable[[Tail], AbstractContextManager[None]]
) -> list[Trial]:
    """Everything trained, at each end of what tails there are; and one tensor far below.

    The last has its gradient pass through the whole model, and computes hardly any of a weight.
    """
    ends = list(samples.items())
    chosen = [ends[0], ends[-1]] if len(ends) > 1 else ends
    tail, graph = ends[-1]
    passing = {name: f - graph.own_flops[name] for name, f in graph.closure_flops.items()}
    far = max(passing, key=lambda name: (passing[name], -graph.sizes[name]))
    whole = [Trial(one, one.tensors, partial(at, t)) for t, one in chosen]
    return [*whole, Trial(graph, (far,), partial(at, tail))]


def _entry(one: Trial) -> Entry:
    """What a pass costs."""
    return Entry("trace", *_flops(one))


def _flops(one: Trial) -> tuple[int, int]:
    """Of its forward and its backward pass."""
    return one.graph.forward_flops, one.graph.backward_flops(one.names)


def _warming(trials: Sequence[Trial], device: torch.device) -> Sequence[Trial]:
    """Passes beforehand, besides the first, which touches memory: a GPU loads kernels for each."""
    return trials if device.type == "cuda" else ()


def _timed(
    model: nn.Module, batch: Batch, loss_fn: LossFn | None, trial: Trial, repeats: int
) -> TimedPass:
    """The mean of a few passes."""
    parameters = dict(model.named_parameters())
    device = next(iter(parameters.values())).device
    forward, backward = [], []
    for _ in range(repeats):
        with preserved(model, trial.names), trial.on():
            start = now(device)
            loss = loss_of(model, batch, loss_fn)
            between = now(device)
            loss.backward()
            end = now(device)
            for name in trial.names:
                parameters[name].grad = None
        forward.append(between - start)
        backward.append(end - between)
    work = work_of(trial.graph, trial.names)
    return TimedPass(work, statistics.mean(forward), statistics.mean(backward))


def _update_seconds(model: nn.Module, optimizer: torch.optim.Optimizer) -> float:
    """Seconds an element of an optimizer's step and of clipping gradients before it.

    Timed on copies of some tensors, the smallest that make up `UPDATED` elements together.
    """
    held = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    parameters = sorted((p for p in model.parameters() if id(p) in held), key=nn.Parameter.numel)
    copies: list[nn.Parameter] = []
    for parameter in parameters:
        if copies and sum(p.numel() for p in copies) + parameter.numel() > UPDATED:
            break
        copies.append(nn.Parameter(parameter.detach().clone()))
    stepping: Any = twin(optimizer, held[id(parameters[0])], copies)
    seconds = []
    for _ in range(STEPS):
        for copy in copies:
            copy.grad = torch.zeros_like(copy)
        start = now(parameters[0].device)
        nn.utils.clip_grad_norm_(copies, 1.0)
        type(optimizer).step(stepping)
        seconds.append(now(parameters[0].device) - start)
    return statistics.median(seconds[1:]) / sum(p.numel() for p in copies)
