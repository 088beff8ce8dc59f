"""What a share of the FLOPs is worth in seconds and bytes: `python benchmarks gpu_steps`.

Real training steps of OPT-2.7B and OPT-6.7B at 4 x 512 tokens on one GPU, with random weights, in
bfloat16 and float32: full fine-tuning, the last two layers, LoRA, prefix tuning, the tensors that
the selector takes at several rho, and all tensors with gradient through some positions only: an
eighth of each row is its completion.  Each model is traced and probed once; the selections are
applied by `Freezer`, as the engine does, and one row is run by the engine itself.

Methods take turns in rounds, every other round backwards, so that a drift of the machine meets all
alike; each turn begins with a fresh optimizer and ends with everything freed, so the peak memory is
the method's own.  What cannot fit is skipped by an estimate, with the reason in its row.

`--smoke` runs the same on two-layer models, on a GPU or without one, and prints what it finds.
"""

import argparse
import gc
import json
import math
import statistics
import time
from collections.abc import Iterable, Sequence
from contextlib import closing
from typing import Any

import torch
from hardware.full_size import (
    COMPLETION,
    MEANING,
    NO_TIME,
    ROUNDS,
    Allowance,
    Case,
    Plan,
    Turn,
    adamw,
    attempted,
    free,
    in_turn,
    misfit,
    plan,
    shortened,
    step,
    turn,
    wearing,
)  # fmt: skip
from paper.paper_models import CONFIGS, ROWS, hollow, opt, top_two
from shared.results import check, write
from torch import nn

from greentrainer import AdaptiveBackprop, measure_importance, select, trace
from greentrainer.engine import GraphCache
from greentrainer.types import Batch, CostGraph, Importance

Row = dict[str, Any]

RHOS = (0.36, 0.4, 0.5, 0.6, 0.7, 0.8)
ENGINE_RHO = 0.5
TAILS = (0, 1, 3)
"""Positions before the completion that gradient passes through, in eighths of a row."""
LONG_RUN = 1000
"""Batches of the run that the engine is told of: so many that one selection holds throughout."""
FULL_SIZE = (
    ("opt-2.7b", "bf16"),
    ("opt-6.7b", "bf16"),
    ("opt-2.7b", "fp32"),
    ("opt-6.7b", "fp32"),
)
TINY = ("opt-tiny", 2, 32)
"""Name, rows and length of the smoke run."""
NOTE = (
    "Seconds are medians over all rounds; 'low' and 'high' are the smallest and the largest. "
    "Memory is torch's peak of allocated bytes (of the process, without a GPU). FLOPs are the cost "
    "graph's; 'counted' are those of a step counted while it ran. 'drift' is the last round's "
    "median over the first's. Weights are random; every row is full of tokens, and the last eighth "
    "of them its completion. Under 'positions' every tensor is trained, with gradient through the "
    "completion and the 'tail' before it, and the head on labelled positions."
)


def measured(case: Case, allowance: Allowance) -> list[Row]:
    """All rows of one model; a single one where full fine-tuning, the reference, cannot be had."""
    parameters = sum(p.numel() for p in hollow(case.config).parameters())
    why = misfit(case, parameters, parameters) or (NO_TIME if allowance.over() else "")
    if why:
        allowance.say(f"{case.model} {case.precision}: skipped, {why}")
        return [step_row(case, "full", None) | {"skipped": why}]
    found = attempted(lambda: rows_of(case, allowance))
    free()
    if isinstance(found, str):
        return [step_row(case, "full", None) | {"skipped": found}]
    rows: list[Row] = found
    return rows


def rows_of(case: Case, allowance: Allowance) -> list[Row]:
    """Build a model; what is done once, then the methods in turn."""
    allowance.say(f"{case.model} {case.precision}: building")
    model, batch = case.build(), case.batch()
    graph, once = by_the_engine(case, model, batch, allowance)
    free()
    allowance.say(f"{case.model} {case.precision}: traced, probed, selected at {ENGINE_RHO:g}")
    plans, infeasible = plans_of(model, batch, graph)
    plans += with_tails(model, batch, [case.length // COMPLETION * n for n in TAILS])
    turns = [turn(case, graph, what) for what in plans]
    in_turn(model, batch, turns, allowance, f"{case.model} {case.precision}")
    rows = [*compared(case, graph, turns), *once]
    return rows + [step_row(case, "green", rho) | {"skipped": why} for rho, why in infeasible]


def by_the_engine(
    case: Case, model: nn.Module, batch: Batch, allowance: Allowance
) -> tuple[CostGraph, list[Row]]:
    """The cost graph, and seconds of tracing, probing, selecting and of the engine's own steps.

    It probes and selects twice: the first time, kernels are loaded.
    """
    optimizer = adamw(model)
    with AdaptiveBackprop(
        model, optimizer, batch, rho=ENGINE_RHO, total_batches=LONG_RUN
    ) as engine:
        engine.reselect([batch])
        chosen = engine.reselect([batch])
        timed = [
            step(model, optimizer, batch)[0] for _ in range(allowance.warmup + allowance.steps)
        ]
        entries = {
            kind: [entry.seconds for entry in engine.ledger if entry.kind == kind]
            for kind in ("probe", "select")
        }
        graph, tracing = engine.graph, engine.graphs.seconds
        assert engine.selection == chosen
    common = {"model": case.model, "precision": case.precision, "rho": ENGINE_RHO}
    spent = {
        "backward_flops": chosen.backward_flops,
        "backward / budget": chosen.backward_flops / chosen.backward_budget,
    }
    return graph, [
        {"what": "trace", **common, "seconds": tracing, "notes": list(graph.notes)},
        {"what": "probe, 1 batch", **common, **warm(entries["probe"])},
        {"what": "select", **common, **warm(entries["select"]), **spent},
        {"what": "step by the engine", **common, **spread(timed[allowance.warmup :])},
    ]


def warm(seconds: Sequence[float]) -> Row:
    """Seconds of the last time, and of the first."""
    return {"seconds": seconds[-1], "first": seconds[0]}


def plans_of(
    model: nn.Module, batch: Batch, graph: CostGraph
) -> tuple[list[Plan], list[tuple[float, str]]]:
    """What each method trains, full fine-tuning first, and each rho that is too small and why."""
    last_two = set(top_two(model))
    top = tuple(name for name in graph.tensors if name in last_two)
    plans = [plan(graph, graph.tensors, "full"), plan(graph, top, "top2")]
    for worn in ("lora", "prefix"):
        with wearing(model, worn) as wrapped:
            adapted = trace(wrapped, batch)
        plans.append(plan(adapted, adapted.tensors, worn))
    smallest = graph.smallest_rho()
    importance = importance_of(model, batch, graph)
    for rho in (rho for rho in RHOS if rho >= smallest):
        chosen = select(graph, importance, graph.backward_budget(rho))
        plans.append(plan(graph, chosen.names, "green", rho))
    reason = f"the smallest rho of this model is {smallest:.4f}"
    return plans, [(rho, reason) for rho in RHOS if rho < smallest]


def with_tails(model: nn.Module, batch: Batch, tails: Sequence[int]) -> list[Plan]:
    """All tensors trained, with gradient through each of these tails."""
    found = []
    with closing(shortened(model, batch, 0)) as short:
        parameters = list(model.parameters())
        graphs = GraphCache(model, parameters, None, head=short.traced_head, split=short.split)
        for tail in tails:
            with short.at(tail):
                graph = graphs.of_batch(batch)
            found.append(plan(graph, graph.tensors, "positions", tail=tail))
    return found


def importance_of(model: nn.Module, batch: Batch, graph: CostGraph) -> Importance:
    """Of all tensors that the largest rho can pay for."""
    names = graph.affordable(graph.backward_budget(max(RHOS)))
    return measure_importance(model, [batch], adamw(model), tensors=names)


def compared(case: Case, graph: CostGraph, turns: Sequence[Turn]) -> list[Row]:
    """A row for each method; the first is what the others are compared with."""
    rows = [turn_row(case, graph, one) for one in turns]
    full = rows[0]
    for row in rows:
        for what, figure in (("seconds", "seconds"), ("memory", "peak_bytes")):
            if figure in row and figure in full:
                row[f"{what} / full"] = row[figure] / full[figure]
    return rows


def turn_row(case: Case, graph: CostGraph, one: Turn) -> Row:
    """What one method took, or why it was skipped."""
    what, rounds = one.what, [statistics.median(v.seconds) for v in one.visits]
    row = step_row(case, what.method, what.rho) | {
        "tail": what.tail,
        "tensors": len(what.names),
        "values": what.values,
        "flops": what.flops,
        "flops / full": what.flops / graph.full_flops,
        "estimated_bytes": one.estimate,
    }
    if one.skipped:
        return row | {"skipped": one.skipped}
    times = spread([seconds for v in one.visits for seconds in v.seconds])
    return {
        **row,
        **times,
        "steps": sum(len(v.seconds) for v in one.visits),
        "tflops_per_second": what.flops / times["seconds"] / 1e12,
        "peak_bytes": max(v.peak_bytes for v in one.visits),
        "counted": one.visits[0].counted_flops,
        "drift": rounds[-1] / rounds[0] if len(rounds) > 1 else None,
        "loss": one.visits[-1].loss,
    }


def step_row(case: Case, method: str, rho: float | None) -> Row:
    """The beginning of a row about a step."""
    return {
        "what": "step",
        "model": case.model,
        "precision": case.precision,
        "method": method,
        "rho": rho,
    }


def spread(seconds: Sequence[float]) -> Row:
    """Median, smallest and largest."""
    return {"seconds": statistics.median(seconds), "low": min(seconds), "high": max(seconds)}


def checks_of(rows: Sequence[Row]) -> list[Row]:
    """What the project promises, of whatever was measured."""
    steps = [row for row in rows if row["what"] == "step" and "seconds / full" in row]
    green = [row for row in steps if row["method"] == "green"]
    at = {rho: [row for row in green if row["rho"] == rho] for rho in RHOS}
    found = [
        worst(
            f"seconds' share beyond FLOPs' share, rho {rho:g}",
            (row["seconds / full"] - row["flops / full"] for row in at[rho]),
            0.1,
        )
        for rho in RHOS
    ]
    found += [
        worst(
            "seconds' share beyond FLOPs' share, positions",
            (r["seconds / full"] - r["flops / full"] for r in steps if r["method"] == "positions"),
            0.1,
        ),
        worst("memory / full, rho 0.5", (row["memory / full"] for row in at[ENGINE_RHO]), 0.99),
        worst("FLOPs' share beyond rho", (row["flops / full"] - row["rho"] for row in green), 0.0),
        worst("counted FLOPs off the graph's", (abs(r["counted"] - r["flops"]) for r in steps), 0),
        worst("selection / budget", (r["backward / budget"] for r in of(rows, "select")), 1.0),
        worst("drift of a method", (abs(r["drift"] - 1) for r in steps if r["drift"]), 0.05),
        worst("engine's step / one by Freezer, rho 0.5", engine_ratios(rows, at[ENGINE_RHO]), 1.05),
    ]
    short = sum(row.get("skipped") == NO_TIME for row in rows)
    broken = sum(not math.isfinite(row["loss"]) for row in steps)
    return [
        *(c for c in found if c),
        check("losses that are not finite", broken, 0),
        check("rows left out for want of time", short, 0),
    ]


def of(rows: Iterable[Row], what: str) -> list[Row]:
    """The rows about one thing."""
    return [row for row in rows if row["what"] == what]


def worst(name: str, values: Iterable[float], target: float) -> Row | None:
    """A promise about the largest of these values, None if there are none."""
    seen = list(values)
    return check(name, max(seen), target) if seen else None


def engine_ratios(rows: Iterable[Row], green: Sequence[Row]) -> list[float]:
    """Seconds of the engine's steps over those of the row at its rho, a ratio for each case."""
    return [
        engine["seconds"] / row["seconds"]
        for engine in of(rows, "step by the engine")
        for row in green
        if (row["model"], row["precision"]) == (engine["model"], engine["precision"])
    ]


def cases(smoke: bool, attention: str) -> list[Case]:
    """The models to measure: of full size, or tiny ones."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if smoke:
        name, rows, length = TINY
        tiny = opt(64, 2, 4, vocab_size=512, max_position_embeddings=64)
        return [Case(name, tiny, p, rows, length, device, attention) for p in MEANING]
    return [
        Case(name, CONFIGS[name](), precision, ROWS, 512, device, attention)
        for name, precision in FULL_SIZE
    ]


def device_facts() -> Row:
    """What it ran on."""
    facts: Row = {"name": "cpu", "torch": torch.__version__, "cuda": torch.version.cuda}
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        facts |= {"name": properties.name, "memory_bytes": properties.total_memory}
    return facts


def settings(asked: argparse.Namespace, some: Case, allowance: Allowance) -> Row:
    """How it was measured."""
    return {
        "batch": [some.rows, some.length],
        "attention": some.attention,
        "optimizer": "fused AdamW",
        "rounds": ROUNDS,
        "warmup steps a round": asked.warmup,
        "timed steps a round": asked.steps,
        "precision": MEANING,
        "budget_seconds": asked.budget_seconds,
        "seconds": time.perf_counter() - allowance.start,
        "cut short by the budget": allowance.cut,
    }


def arguments() -> argparse.Namespace:
    """The command line's.  Without a GPU only the smoke run is of use."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--write", action="store_true", help="a smoke run's figures, too")
    parser.add_argument("--attention", choices=("sdpa", "eager"), default="sdpa")
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--budget-seconds", type=float, default=450)
    asked = parser.parse_args()
    if not (asked.smoke or torch.cuda.is_available()):
        parser.error("no GPU here: only --smoke runs without one")
    return asked


def main() -> None:
    """Measure everything; write `results/gpu_steps.json`, whatever ended the measuring."""
    asked = arguments()
    torch.set_float32_matmul_precision("highest")
    torch.manual_seed(0)
    gc.freeze()  # what is imported by now stays: collecting between turns need not look at it
    allowance = Allowance(asked.budget_seconds, asked.warmup, asked.steps)
    planned = cases(asked.smoke, asked.attention)
    rows: list[Row] = []
    try:
        for case in planned:
            rows += measured(case, allowance)
    finally:
        told: Row = {"device": device_facts(), "settings": settings(asked, planned[0], allowance)}
        if asked.smoke and not asked.write:
            print(json.dumps({"rows": rows, "checks": checks_of(rows), **told}))
        else:
            name = "gpu_steps_smoke" if asked.smoke else "gpu_steps"
            write(name, rows, checks_of(rows), seeds=[0], note=NOTE, **told)
