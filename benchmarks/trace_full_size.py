"""Trace a full-size model from its configuration: `python benchmarks/trace_full_size.py opt-2.7b`.

Prints the name, seconds (building the hollow model and tracing), peak memory of the process in GB,
forward and full backward FLOPs.
"""

import resource
import sys
import time

import torch
import transformers as tf

from greentrainer import CostGraph, trace


def opt(hidden: int, layers: int, heads: int) -> tf.OPTConfig:
    """An OPT configuration of the given width and depth."""
    return tf.OPTConfig(
        hidden_size=hidden,
        ffn_dim=4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        word_embed_proj_dim=hidden,
    )


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


def main() -> None:
    """Trace the size named on the command line."""
    size = sys.argv[1]
    start = time.perf_counter()
    graph = traced(size)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(size, f"{seconds:.2f} {peak:.2f}", graph.forward_flops, graph.full_backward_flops)


if __name__ == "__main__":
    main()
