"""What a step takes on a GPU, uncompiled and compiled: `python benchmarks seconds`.

Training steps of OPT-2.7B, Qwen3-1.7B and a Llama of 1B, with random weights in bfloat16, at three
shapes of batches whose last eighth is the completion: full fine-tuning, LoRA, the tensors of rho
0.45, and all tensors with gradient through the completion and eight positions.  Full fine-tuning
stopped early makes the steps of full fine-tuning, a share of rho of them.  Methods take turns as in
`gpu_steps`; a last step of each is profiled: how long the GPU is busy, and kernels launched.

`--smoke` runs the same on two-layer models, on a GPU or without one (operations dispatched in place
of kernels), and prints what it finds.
"""

import argparse
import gc
import json
import time
from collections.abc import Sequence
from typing import Any

import torch
import transformers as tf
from hardware.full_size import (
    COMPLETION,
    ROUNDS,
    Allowance,
    Case,
    Plan,
    Turn,
    free,
    in_turn,
    plan,
    prepared,
    step,
    turn,
    wearing,
)  # fmt: skip
from hardware.gpu_steps import compared, device_facts, importance_of, with_tails, worst
from paper.paper_models import CONFIGS, opt
from shared.results import check, write
from torch.utils._python_dispatch import TorchDispatchMode

from greentrainer import select, trace
from greentrainer.hf import compile_blocks
from greentrainer.types import Batch

Row = dict[str, Any]

RHO, TAIL = 0.45, 8
SHAPES = ((16, 512), (8, 2048), (4, 512))
"""Those of `BARS` first."""
BARS = {("opt-2.7b", False): 0.5, ("qwen3-1.7b", True): 0.5}
"""Most that a step through a tail may take of full fine-tuning's, both compiled or both not."""
AT = (16, 512)
LAUNCHES = 1.15
QWEN3 = {"hidden_size": 2048, "num_hidden_layers": 28, "intermediate_size": 6144,
         "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128,
         "vocab_size": 151936, "tie_word_embeddings": True}  # fmt: skip
LLAMA = {"hidden_size": 2048, "num_hidden_layers": 16, "intermediate_size": 8192,
         "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
         "tie_word_embeddings": True}  # fmt: skip
TINY = {"hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 128,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 512}  # fmt: skip
VIEWS = {"view", "reshape", "transpose", "t", "slice", "unsqueeze", "squeeze", "expand", "permute",
         "detach", "alias", "select", "as_strided", "_unsafe_view", "split", "unbind", "empty",
         "split_with_sizes", "empty_like", "new_empty", "empty_strided"}  # fmt: skip
"""Operations that launch nothing."""
NOTE = (
    "Seconds are medians over all rounds. 'busy' and 'launches' are of one step under the "
    "profiler: seconds of kernels, and their number. Compiled rows are held against compiled full "
    "fine-tuning."
)


class Dispatched(TorchDispatchMode):
    """Counts operations that would launch a kernel."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run one."""
        self.count += func._schema.name.split("::")[1] not in VIEWS
        return func(*args, **(kwargs or {}))


def profiled(model: Any, what: Plan, batch: Batch, compiled: bool) -> Row:
    """Kernels of one step, and how long they run; operations dispatched where there is no GPU."""
    with prepared(model, what, batch) as (worn, optimizer):
        step(worn, optimizer, batch)
        if not torch.cuda.is_available():
            if compiled:
                return {}
            with Dispatched() as seen:
                step(worn, optimizer, batch)
            return {"launches": seen.count}
        activities = [torch.profiler.ProfilerActivity.CUDA]
        with torch.profiler.profile(activities=activities) as found:
            step(worn, optimizer, batch)
    kernels = [e for e in found.events() or [] if str(e.device_type).endswith("CUDA")]
    return {
        "launches": len(kernels),
        "busy": sum(e.self_device_time_total for e in kernels) / 1e6,
    }


def titled(case: Case, compiled: bool) -> str:
    """What a part of the benchmark is called."""
    return f"{case.model} {case.rows} x {case.length}{', compiled' if compiled else ''}"


def rows_of(
    case: Case, compiled: bool, allowance: Allowance, methods: Sequence[str] = ()
) -> list[Row]:
    """All methods, or those named, on one model and one shape."""
    title = titled(case, compiled)
    allowance.say(f"{title}: building")
    model, batch = case.build(), case.batch()
    graph = trace(model, batch)
    plans = [plan(graph, graph.tensors, "full")]
    if not methods or "lora" in methods:
        with wearing(model, "lora") as wrapped:
            adapted = trace(wrapped, batch)
        plans.append(plan(adapted, adapted.tensors, "lora"))
    if not methods or "green" in methods:
        importance = importance_of(model, batch, graph)
        chosen = select(graph, importance, graph.backward_budget(RHO))
        plans.append(plan(graph, chosen.names, "green", RHO))
    if compiled:
        compile_blocks(model)
    if not methods or "positions" in methods:
        plans += with_tails(model, batch, [TAIL])
    turns: list[Turn] = [turn(case, graph, what) for what in plans]
    in_turn(model, batch, turns, allowance, title)
    rows = compared(case, graph, turns)
    shape = {"rows": case.rows, "length": case.length, "compiled": compiled}
    for row, one in zip(rows, turns, strict=True):
        row |= shape
        if not one.skipped:
            row |= profiled(model, one.what, batch, compiled)
    for row in rows:
        if "launches" in row and "launches" in rows[0]:
            row["launches / full"] = row["launches"] / rows[0]["launches"]
    if "seconds" in rows[0]:
        early = {"seconds": RHO * rows[0]["seconds"], "seconds / full": RHO}
        rows.append({**rows[0], "method": "early", "rho": RHO, **early})
    return rows


def cases(smoke: bool) -> list[Case]:
    """Models and shapes, full size or tiny."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if smoke:
        small = opt(64, 2, 4, vocab_size=512, max_position_embeddings=64)
        tiny = [("opt-2.7b", small), ("qwen3-1.7b", tf.Qwen3Config(**TINY, head_dim=16))]
        return [Case(name, config, "fp32", 2, 32, device) for name, config in tiny]
    models = [
        ("opt-2.7b", CONFIGS["opt-2.7b"]()),
        ("qwen3-1.7b", tf.Qwen3Config(**QWEN3)),
        ("llama-1b", tf.LlamaConfig(**LLAMA)),
    ]
    return [Case(name, one, "bf16", *shape, device) for shape in SHAPES for name, one in models]


def checks_of(rows: Sequence[Row]) -> list[Row]:
    """What the project promises, of whatever was measured."""
    through = [row for row in rows if row["method"] == "positions"]
    timed = [row for row in through if "seconds / full" in row]
    found = []
    for (model, compiled), most in BARS.items():
        own = [r for r in timed if r["model"] == model and r["compiled"] == compiled]
        shares = [r["seconds / full"] for r in own if (r["rows"], r["length"]) == AT]
        kind = "compiled" if compiled else "uncompiled"
        found.append(worst(f"{model}, {kind}, 16 x 512: seconds / full", shares, most))
    found.append(worst("seconds / full, positions", (r["seconds / full"] for r in timed), 1.0))
    launched = [r["launches / full"] for r in through if "launches / full" in r]
    found.append(worst("launches / full, positions, uncompiled", launched, LAUNCHES))
    short = sum("skipped" in row for row in rows)
    return [*(one for one in found if one), check("rows left out", short, 0)]


def main() -> None:
    """Measure everything; write `results/seconds.json`, whatever ended the measuring."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--budget-seconds", type=float, default=340)
    parser.add_argument("--only", nargs="*", default=(), help='as "opt-2.7b 16 x 512, compiled"')
    parser.add_argument("--methods", nargs="*", default=(), help="besides full")
    asked = parser.parse_args()
    if not (asked.smoke or torch.cuda.is_available()):
        parser.error("no GPU here: only --smoke runs without one")
    torch.manual_seed(0)
    gc.freeze()
    allowance = Allowance(asked.budget_seconds, asked.warmup, asked.steps)
    rows: list[Row] = []
    try:
        for case in cases(asked.smoke):
            for compiled in (False, True):
                wanted = not asked.only or titled(case, compiled) in asked.only
                if wanted and not allowance.over():
                    rows += rows_of(case, compiled, allowance, asked.methods)
                    free()
                    torch._dynamo.reset()
    finally:
        told: Row = {"device": device_facts(), "settings": {
            "completion": f"1/{COMPLETION}", "tail": TAIL, "rounds": ROUNDS,
            "seconds": time.perf_counter() - allowance.start,
            "cut short by the budget": allowance.cut,
        }}  # fmt: skip
        if asked.smoke:
            print(json.dumps({"rows": rows, "checks": checks_of(rows), **told}))
        else:
            write("seconds", rows, checks_of(rows), seeds=[0], note=NOTE, **told)
