"""What the engine itself costs, on SmolLM2-135M: `python benchmarks engine`.

* seconds of tracing a batch, of choosing tensors, and of measuring importance, and the probe's
  FLOPs as a share of an epoch of the quickstart's length;
* the probe's peak memory beyond that of a backward pass whose gradients are freed as they arrive;
* seconds of a step at several rho: run by the engine, frozen by hand at the same tensors, and full
  fine-tuning, in turn and in changing order, so that a drift of the machine meets all alike.

The hand-frozen loop trains a second copy of the model: nothing of the engine is on it.
"""

import argparse
import itertools
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from rich.console import Console
from shared.results import check, write
from torch import nn

from greentrainer import AdaptiveBackprop, measure_importance, select, trace
from greentrainer.model import PeakMemory
from greentrainer.run import CONFIG
from greentrainer.run import run as runs
from greentrainer.tasks import encode
from greentrainer.types import Batch

Row = dict[str, Any]

RHOS = (0.45, 0.5, 0.7)
PAIRS_RHO = 0.6
PROBE_BATCHES = 1
LONG_RUN = 1000
"""Batches of the run that the engine is told of: so many that one selection holds throughout."""
NOTE = (
    "Seconds are medians over the repetitions; 'low' and 'high' are the smallest and the largest. "
    "Ratios are medians of ratios within a repetition."
)


@dataclass
class Subject:
    """One copy of the model with an optimizer of its own."""

    model: nn.Module
    optimizer: torch.optim.Optimizer

    def step(self, batch: Batch) -> float:
        """Seconds of one training step."""
        start = time.perf_counter()
        self.model(**batch).loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return time.perf_counter() - start


def inputs(length: int, rows: int) -> tuple[nn.Module, list[Batch]]:
    """SmolLM2-135M and batches of `rows` x `length` real tokens."""
    config = CONFIG.model_copy(
        update={"max_length": length, "batch_size": rows, "train_limit": 8 * rows, "test_limit": 1}
    )
    found = runs.prepare(config, Console(quiet=True))
    collate = encode.Collator(found.tokenizer.pad_token_id, max_length=length)
    order = encode.batches(found.train, rows)
    batches = [collate([found.train[i] for i in picked]) for picked in order]
    widest = max(batch["input_ids"].shape[1] for batch in batches)
    return found.model.train(), [b for b in batches if b["input_ids"].shape == (rows, widest)]


def subject(length: int, rows: int) -> tuple[Subject, list[Batch]]:
    """The model with fused AdamW, and batches."""
    model, batches = inputs(length, rows)
    return Subject(model, torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)), batches


def overheads(subject: Subject, batches: list[Batch], repeats: int) -> list[Row]:
    """Seconds of tracing, choosing and probing."""
    model, batch = subject.model, batches[0]
    graph = trace(model, batch)
    rows = [{"what": "trace", **spread([timed(lambda: trace(model, batch)) for _ in range(5)])}]
    for rho in RHOS:
        names = graph.affordable(graph.backward_budget(rho))
        probe = partial(measure_importance, model, [batch], subject.optimizer, tensors=names)
        seconds = [timed(probe) for _ in range(max(3, repeats // 4))]
        budget, importance = graph.backward_budget(rho), probe()
        choices = [timed(partial(select, replace(graph), importance, budget)) for _ in range(5)]
        rows.append({"what": "select", "rho": rho, **spread(choices)})
        flops = graph.forward_flops + graph.backward_flops(names)
        epoch = quickstart_batches() * rho * graph.full_flops
        rows.append(
            {
                "what": "probe, 1 batch",
                "rho": rho,
                **spread(seconds),
                "flops / full step": flops / graph.full_flops,
                "flops / epoch": flops / epoch,
            }
        )
    return rows


def quickstart_batches() -> int:
    """Batches of the quickstart."""
    assert CONFIG.train_limit is not None
    return CONFIG.epochs * -(-CONFIG.train_limit // CONFIG.batch_size)


def steps(
    green: Subject, hand: Subject, batches: list[Batch], rho: float, repeats: int
) -> list[Row]:
    """Seconds of a step under the engine, by hand, and of full fine-tuning."""
    engine = AdaptiveBackprop(
        green.model, green.optimizer, batches[0], rho=rho, total_batches=LONG_RUN
    )
    chosen = engine.reselect(batches[:PROBE_BATCHES])
    stream = itertools.cycle(batches)
    parameters = dict(hand.model.named_parameters())

    def freeze(names: Any) -> None:
        for name, parameter in parameters.items():
            parameter.requires_grad_(name in names)

    def by_hand(batch: Batch) -> float:
        freeze(set(chosen.names))
        return hand.step(batch)

    def full(batch: Batch) -> float:
        freeze(parameters)
        return hand.step(batch)

    runners: dict[str, Callable[[Batch], float]] = {
        "engine": green.step,
        "by hand": by_hand,
        "full": full,
    }
    seconds: dict[str, list[float]] = {name: [] for name in runners}
    orders = itertools.cycle(itertools.permutations(runners))
    for runner in runners.values():
        runner(batches[0])
    for _ in range(repeats):
        batch = next(stream)
        for name in next(orders):
            seconds[name].append(runners[name](batch))
    assert engine.selection == chosen
    step_flops = engine.graph.forward_flops + chosen.backward_flops
    engine.close()
    common = {"what": "step", "rho": rho, "flops / full": step_flops / engine.graph.full_flops}
    return [
        {
            **common,
            "run": name,
            **spread(values),
            "seconds / full": ratio(values, seconds["full"]),
            "seconds / by hand": ratio(values, seconds["by hand"]),
        }
        for name, values in seconds.items()
    ]


def pairs(green: Subject, hand: Subject, batch: Batch, repeats: int) -> Row:
    """Many short steps in turn, under the engine and frozen by hand: the overhead at its largest.

    Processor time is steadier than seconds on a shared machine; both are given, with quartiles.
    """
    ratios: dict[str, list[float]] = {"seconds": [], "processor time": []}
    with AdaptiveBackprop(
        green.model, green.optimizer, batch, rho=PAIRS_RHO, total_batches=LONG_RUN
    ) as engine:
        chosen = set(engine.reselect([batch]).names)
        for name, parameter in hand.model.named_parameters():
            parameter.requires_grad_(name in chosen)
        for turn in range(repeats + 2):
            spent = {}
            for one in (green, hand) if turn % 2 else (hand, green):
                start = time.process_time()
                seconds = one.step(batch)
                spent[id(one)] = (seconds, time.process_time() - start)
            if turn >= 2:
                for what, a, b in zip(ratios, spent[id(green)], spent[id(hand)], strict=True):
                    ratios[what].append(a / b)
    row: Row = {"what": "pairs of short steps", "rho": PAIRS_RHO, "pairs": repeats}
    for what, values in ratios.items():
        low, middle, high = statistics.quantiles(values, n=4)
        row |= {what: middle, f"{what}, quartiles": f"{low:.3f} to {high:.3f}"}
    return row


def inside_the_engine(green: Subject, batches: list[Batch], repeats: int) -> Row:
    """Seconds of what the engine does before and after each batch, by itself, and of a step."""
    batch = batches[0]
    with AdaptiveBackprop(green.model, green.optimizer, batch, rho=0.5) as engine:
        engine.reselect(batches[:1])
        step = statistics.median(green.step(batch) for _ in range(max(3, repeats // 4)))
        bookkeeper = engine._bookkeeper

        def hooks() -> None:
            bookkeeper._before_forward(green.model, (), batch)
            bookkeeper._enter_backward(0)
            bookkeeper._after_step()

        own = [timed(hooks) for _ in range(100)]
    return {
        "what": "engine's own code",
        **spread(own),
        "share of a step": spread(own)["seconds"] / step,
    }


def probe_memory(length: int, rows: int) -> Row:
    """Peak memory of a probe of all tensors beyond that of a plain backward pass."""
    context = multiprocessing.get_context("spawn")
    peaks = {}
    for what in ("backward", "probe"):
        with context.Pool(1) as pool:
            peaks[what], largest = pool.apply(_peak, (what, length, rows))
    extra = peaks["probe"] - peaks["backward"]
    return {
        "what": "probe, peak memory",
        "backward_bytes": peaks["backward"],
        "probe_bytes": peaks["probe"],
        "largest_tensor_bytes": largest,
        "extra / largest tensor": extra / largest,
        "extra / model": extra / peaks["backward"],
    }


def _peak(what: str, length: int, rows: int) -> tuple[int, int]:
    one, batches = subject(length, rows)
    one.step(batches[0])  # optimizer state exists
    handles = []
    runs.release_memory()
    with PeakMemory() as memory:
        if what == "probe":
            measure_importance(one.model, batches[:1], one.optimizer)
        else:
            parameters = one.model.parameters()
            handles += [p.register_post_accumulate_grad_hook(_drop) for p in parameters]
            one.model(**batches[0]).loss.backward()
    for handle in handles:
        handle.remove()
    return memory.peak, max(p.numel() * p.element_size() for p in one.model.parameters())


def _drop(parameter: torch.Tensor) -> None:
    parameter.grad = None


def timed(work: Callable[[], Any]) -> float:
    """Seconds that `work` takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def spread(seconds: list[float]) -> Row:
    """Median, smallest and largest."""
    return {"seconds": statistics.median(seconds), "low": min(seconds), "high": max(seconds)}


def ratio(values: list[float], others: list[float]) -> float:
    """Median ratio within a repetition."""
    return statistics.median(a / b for a, b in zip(values, others, strict=True))


def checks_of(rows: list[Row]) -> list[Row]:
    """What the project promises."""
    engine = [row for row in rows if row.get("run") == "engine"]
    own = next(row for row in rows if row["what"] == "engine's own code")
    memory = next(row for row in rows if row["what"] == "probe, peak memory")
    short = next(row for row in rows if row["what"] == "pairs of short steps")
    dearest = max(row["seconds / full"] - row["flops / full"] for row in engine)
    return [
        check(
            "short steps against those frozen by hand, processor time",
            short["processor time"],
            1.01,
        ),
        check("seconds' share beyond FLOPs' share, worst rho", dearest, 0.05),
        check("engine's own code, share of a step", own["share of a step"], 0.01),
        check("probe's extra memory, in largest tensors", memory["extra / largest tensor"], 8.0),
    ]


def main() -> None:
    """Measure everything and write `results/engine.json`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=10)
    asked = parser.parse_args()
    memory = probe_memory(asked.length, asked.rows)
    green, batches = subject(asked.length, asked.rows)
    hand, _ = subject(asked.length, asked.rows)
    rows = overheads(green, batches, asked.repeats)
    rows.append(memory)
    for rho in RHOS:
        rows += steps(green, hand, batches, rho, asked.repeats)
    short = {key: value[:1] for key, value in batches[0].items()}
    rows.append(pairs(green, hand, short, 5 * asked.repeats))
    rows.append(inside_the_engine(green, batches, asked.repeats))
    shape = list(batches[0]["input_ids"].shape)
    settings = {"batch": shape, "repeats": asked.repeats, "threads": torch.get_num_threads()}
    allocator = {k: v for k, v in os.environ.items() if k.startswith(("MALLOC_", "LD_PRELOAD"))}
    write("engine", rows, checks_of(rows), note=NOTE, settings=settings, allocator=allocator)
