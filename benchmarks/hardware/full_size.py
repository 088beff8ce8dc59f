"""Training steps of the paper's methods on a real device, at full size, with random weights.

Time and memory of a step do not depend on what the weights are.  A model is built on the device in
the precision it is trained in; a method is put on it, trains a few steps with a fresh optimizer,
and is taken off again with all that it held, so that every method finds the same memory free.
"""

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Any

import peft
import psutil
import torch
import transformers as tf
from paper.paper_models import adapter
from torch import nn

from greentrainer.cost import flop_counter
from greentrainer.forward import ForwardOptions, ForwardSavings
from greentrainer.model import Alone, Freezer, PeakMemory, now
from greentrainer.types import IGNORED, Batch, CostGraph, Tail

ROUNDS = 2
NO_TIME = "the time allowed was used up"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
MEANING = {
    "fp32": "float32 throughout, no TF32",
    "bf16": "weights, gradients and AdamW's state bfloat16; adapters float32, as PEFT makes them",
}
LR = 1e-4
"""So large that an update of a weight of the usual size is not lost to bfloat16's rounding."""
COMPLETION = 8
"""One in so many positions of a row is the completion's."""
SAVED = 17
"""Values a layer keeps for the backward pass, for each token and hidden unit (Korthikanti et al.,
2023: 34 bytes at two a value), without the scores, which fused attention does not keep."""
LOGITS = 3
"""Float32 tensors as large as the logits that the loss and its gradient take."""


@dataclass(frozen=True)
class Case:
    """A model in a precision, and the shape of its batches."""

    model: str
    config: Any
    precision: str
    rows: int
    length: int
    device: torch.device
    attention: str = "sdpa"

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return DTYPES[self.precision]

    def build(self) -> nn.Module:
        """The model in training mode, with the weights that its class starts from."""
        with self.device:
            model: Any = tf.AutoModelForCausalLM.from_config(
                self.config, dtype=self.dtype, attn_implementation=self.attention
            )
        model.config.use_cache = False  # as the Trainer of transformers has it
        made: nn.Module = model.train()
        return made

    @property
    def prompt(self) -> int:
        """Positions of a row without a label; the rest is the completion."""
        return self.length - self.length // COMPLETION

    def batch(self) -> dict[str, torch.Tensor]:
        """Rows of random tokens, without padding: a prompt, and a completion to be learned."""
        shape = (self.rows, self.length)
        ids = torch.randint(self.config.vocab_size, shape, device=self.device)
        labels = ids.clone()
        labels[:, : self.prompt] = IGNORED
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


@dataclass(frozen=True)
class Plan:
    """What a method trains.

    names: tensors of the model with its adapter on.  idle: modules that no gradient passes.
    values: elements of the trained tensors.  flops: of one step, by the cost graph.
    tail: positions before the completion that gradient passes through, with the head on labelled
        positions; None: all of them, and the model's own head.
    """

    method: str
    names: tuple[str, ...]
    idle: tuple[str, ...]
    values: int
    flops: int
    rho: float | None = None
    adapter: str | None = None
    tail: Tail = None


@dataclass(frozen=True)
class Visit:
    """A few steps of a method.

    seconds: of each timed step.  peak_bytes: while they ran.  counted_flops: of a warm-up step, as
    counted while it ran.  loss: of the last step.
    """

    seconds: tuple[float, ...]
    peak_bytes: int
    counted_flops: int
    loss: float


def plan(
    graph: CostGraph,
    names: tuple[str, ...],
    method: str,
    rho: float | None = None,
    tail: Tail = None,
) -> Plan:
    """A method that trains these tensors of the graph; the order is the graph's."""
    values = sum(graph.sizes[name] for name in names)
    flops = graph.forward_flops + graph.backward_flops(names)
    worn = method if method in ("lora", "prefix") else None
    return Plan(method, names, graph.idle_modules(names), values, flops, rho, worn, tail)


@contextmanager
def wearing(model: nn.Module, worn: str | None) -> Iterator[nn.Module]:
    """The model with an adapter on and all else frozen; afterwards it is as before."""
    if worn is None:
        yield model
        return
    wrapped: Any = peft.get_peft_model(model, adapter(model, worn))
    try:
        yield wrapped
    finally:
        if worn == "lora":  # the others leave the model's own modules alone
            wrapped.unload()
        model.requires_grad_(True)


def shortened(model: nn.Module, batch: Batch, tail: int) -> ForwardSavings:
    """The model with gradient through that tail only, until this is closed."""
    options = ForwardOptions(labelled_head=True)
    made = ForwardSavings(model, model, options, tail, batch, None, Alone())
    if made.notes:
        raise ValueError("; ".join(made.notes))
    made.go_to(tail)
    return made


@contextmanager
def cut_short(model: nn.Module, batch: Batch, tail: Tail) -> Iterator[None]:
    """In here gradient passes through that tail only."""
    if tail is None:
        yield
        return
    with closing(shortened(model, batch, tail)):
        yield


@contextmanager
def prepared(
    model: nn.Module, what: Plan, batch: Batch
) -> Iterator[tuple[nn.Module, torch.optim.Optimizer]]:
    """The model as the method trains it, and an optimizer without state; both end here."""
    with wearing(model, what.adapter) as worn, cut_short(worn, batch, what.tail):
        candidates = {name: p for name, p in worn.named_parameters() if p.requires_grad}
        optimizer = adamw(worn)
        freezer = Freezer(worn, optimizer, candidates)
        freezer.apply(what.names, what.idle)
        freezer.silence()
        try:
            yield worn, optimizer
        finally:
            optimizer.zero_grad()
            freezer.release()


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    """Fused AdamW over what requires a gradient; state comes with the first gradient."""
    wanted = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.AdamW(wanted, lr=LR, fused=True)


def visit(model: nn.Module, what: Plan, batch: Batch, warmup: int, steps: int) -> Visit:
    """Train a few steps: the first is counted, `warmup` are not timed, then `steps` are."""
    with prepared(model, what, batch) as (worn, optimizer):
        with flop_counter() as counter:
            step(worn, optimizer, batch)
        for _ in range(warmup - 1):
            step(worn, optimizer, batch)
        with PeakMemory() as memory:
            timed = [step(worn, optimizer, batch) for _ in range(steps)]
    seconds, losses = zip(*timed, strict=True)
    return Visit(seconds, memory.peak, counter.get_total_flops(), losses[-1])


def step(model: nn.Module, optimizer: torch.optim.Optimizer, batch: Batch) -> tuple[float, float]:
    """Seconds of one training step, the device's queue empty before and after, and its loss."""
    device = next(model.parameters()).device
    start = now(device)
    loss = model(**batch).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return now(device) - start, float(loss.detach())


def free() -> None:
    """Give back what nothing refers to any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def bytes_needed(case: Case, parameters: int, trained: int) -> int:
    """Estimate of a training step's peak: all weights, three more values for each trained one
    (gradient, two moments), activations as if all layers kept them, and the logits.
    """
    tokens, width = case.rows * case.length, case.dtype.itemsize
    activations = SAVED * case.config.num_hidden_layers * case.config.hidden_size * tokens
    logits = tokens * case.config.vocab_size
    values = parameters + 3 * trained + activations + logits
    return int(width * values + 4 * LOGITS * logits)


def bytes_available() -> int:
    """What this process may hold in all: the GPU's free memory and what it holds by now."""
    if torch.cuda.is_available():
        return int(torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved())
    return int(psutil.virtual_memory().available)


@dataclass
class Allowance:
    """Seconds that may be spent, and how many steps to take.

    cut: whether anything was left out for want of time.
    """

    seconds: float
    warmup: int
    steps: int
    start: float = field(default_factory=time.perf_counter)
    cut: bool = False

    def over(self) -> bool:
        """Whether the time is used up; then something is left out."""
        over = time.perf_counter() - self.start > self.seconds
        self.cut |= over
        return over

    def say(self, text: str) -> None:
        """Progress, with the seconds so far."""
        print(f"{time.perf_counter() - self.start:6.1f} s  {text}", flush=True)


@dataclass
class Turn:
    """A method and its turns so far, or the reason why it has no more of them."""

    what: Plan
    estimate: int
    visits: list[Visit] = field(default_factory=list)
    skipped: str = ""


def attempted(work: Callable[[], Any]) -> Any:
    """What `work` gives, or the first line of the complaint that memory ran out, as a string."""
    try:
        return work()
    except torch.OutOfMemoryError as error:
        return f"out of memory: {str(error).splitlines()[0]}"


def misfit(case: Case, parameters: int, trained: int) -> str:
    """Why a step cannot fit in memory, by estimate; empty if it may."""
    needed, available = bytes_needed(case, parameters, trained), bytes_available()
    fits = needed <= available
    return "" if fits else f"needs about {needed / 1e9:.0f} GB of {available / 1e9:.0f} GB"


def turn(case: Case, graph: CostGraph, what: Plan) -> Turn:
    """A method that has not run yet, skipped where it cannot fit."""
    parameters = sum(graph.sizes.values())
    estimate = bytes_needed(case, parameters, what.values)
    return Turn(what, estimate, skipped=misfit(case, parameters, what.values))


def in_turn(
    model: nn.Module, batch: Batch, turns: Sequence[Turn], allowance: Allowance, title: str
) -> None:
    """Rounds over the methods, every other one backwards, until time is used up."""
    for number in range(ROUNDS):
        for one in turns[:: -1 if number % 2 else 1]:
            if one.skipped:
                continue
            if allowance.over():
                one.skipped = "" if one.visits else NO_TIME
                continue
            take(model, batch, one, allowance)
            state = one.skipped or f"{statistics.median(one.visits[-1].seconds):.4f} s"
            allowance.say(f"{title}, round {number + 1}: {named(one.what)}: {state}")


def take(model: nn.Module, batch: Batch, one: Turn, allowance: Allowance) -> None:
    """One turn of a method."""
    found = attempted(lambda: visit(model, one.what, batch, allowance.warmup, allowance.steps))
    if isinstance(found, str):
        one.skipped = found
    else:
        one.visits.append(found)
    free()


def named(what: Plan) -> str:
    """The method, and its rho or tail."""
    special = what.rho if what.tail is None else what.tail
    return what.method if special is None else f"{what.method} {special:g}"
