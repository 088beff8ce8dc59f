"""Trace full-size models from their configurations: `python benchmarks trace_full_size`.

Each in a process of its own; writes `results/trace_full_size.json`.  With a name, such as opt-2.7b,
it prints that one's seconds (building the hollow model and tracing), peak memory of the process in
GB, forward and full backward FLOPs.
"""

import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
import transformers as tf
from paper.paper_models import opt

from greentrainer import CostGraph, trace

BENCHMARKS = Path(__file__).resolve().parents[1]


CONFIGS = {
    "opt-2.7b": lambda: opt(2560, 32, 32),
    "opt-6.7b": lambda: opt(4096, 32, 32),
    "llama-70b": lambda: tf.LlamaConfig(
        hidden_size=8192,
        intermediate_size=28672,
        num_hidden_layers=80,
        num_attention_heads=64,
        num_key_value_heads=8,
        vocab_size=128256,
    ),
}


def traced(size: str, rows: int = 4, length: int = 512) -> CostGraph:
    """The cost graph of a hollow model of that size for a batch of rows x length tokens."""
    with torch.device("meta"):
        model = tf.AutoModelForCausalLM.from_config(CONFIGS[size]()).eval()
    ids = torch.zeros(rows, length, dtype=torch.long)
    graph: CostGraph = trace(
        model, {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    )
    return graph


def measure(size: str) -> None:
    """Trace one model and print its figures."""
    start = time.perf_counter()
    graph = traced(size)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(size, f"{seconds:.2f} {peak:.2f}", graph.forward_flops, graph.full_backward_flops)


def row(size: str) -> dict[str, Any]:
    """The figures of one model, from a process of its own."""
    run = subprocess.run(
        [sys.executable, str(BENCHMARKS), "trace_full_size", size],
        capture_output=True,
        text=True,
        check=True,
    )
    _, seconds, peak, forward, backward = run.stdout.split()
    return {
        "model": size,
        "seconds": float(seconds),
        "peak_memory_gb": float(peak),
        "forward_flops": int(forward),
        "backward_flops": int(backward),
    }


def main() -> None:
    """Measure all, and write the figures down."""
    from shared.results import check, write

    if len(sys.argv) > 1:
        measure(sys.argv[1])
        return
    rows = [row(size) for size in CONFIGS]
    step = rows[0]["forward_flops"] + rows[0]["backward_flops"]
    petamacs = 5 * 498 * step / 2 / 1e15
    rows.append({"model": "opt-2.7b, 5 epochs of 498 batches of 4 x 512", "peta_macs": petamacs})
    checks = [
        check("seconds of the slowest", max(r["seconds"] for r in rows[:-1]), 10),
        check("peak memory of the largest, GB", max(r["peak_memory_gb"] for r in rows[:-1]), 1.5),
        check("deviation from the published 41.8 PFLOPs (MACs)", abs(petamacs / 41.8 - 1), 0.005),
    ]
    write("trace_full_size", rows, checks)
