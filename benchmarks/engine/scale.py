"""How training scales on paper: `python benchmarks scale`, which writes `results/scale.json`.

A model without weights, rows of its greatest length, batches of one size in each process. For 8, 64
and 512 of them, for replicas (DDP) and shards (FSDP2) and for each share of full fine-tuning: bytes
that each sends in a step, seconds of sending them at a bandwidth, and of a step's passes at a rate
of FLOPs. A step takes at least the longer of the two, where all sending is hidden behind the
passes, and at most both. Bandwidth and rate are assumed, not measured: those of a node with NVLink
up to 8 processes, of its network beyond. Weights and gradients are float32.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import transformers as tf
from shared.results import check, write

from greentrainer.config import RunConfig
from greentrainer.plan import Planner

PROCESSES = (8, 64, 512)
RATE = 400e12
"""FLOPs a second that a GPU of the kind reaches in bfloat16: two fifths of what it is sold by."""
WIRE = {8: 300e9, 64: 40e9, 512: 40e9}
"""Bytes a second that each sends: NVLink within a node, 400 Gb/s a GPU between nodes."""
SHARES = (0.4, 0.5, 0.7, 1.0)
MODELS: dict[str, dict[str, Any]] = {
    "llama-8b": {
        "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
    },
    "llama-1b": {
        "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
        "tie_word_embeddings": True,
    },
}  # fmt: skip


def told(name: str, processes: int, folder: Path, batch: int, length: int) -> list[dict[str, Any]]:
    """What is sent and computed, for each share and both strategies."""
    place = folder / name
    place.mkdir(exist_ok=True)
    settings = tf.LlamaConfig(**MODELS[name], max_position_embeddings=length)
    (place / "config.json").write_text(json.dumps(settings.to_dict()))
    config = RunConfig(
        model=str(place / "config.json"), processes=processes, batch_size=batch, max_length=length
    )
    planner = Planner(config, padded=True)
    full = planner.graph.full_flops / RATE
    rows = []
    for row in planner.together(WIRE[processes]):
        if row.rho not in SHARES:
            continue
        assert row.seconds is not None
        passes = row.rho * full
        rows.append({
            "model": name,
            "processes": processes,
            "parallel": row.parallel,
            "rho": row.rho,
            "sent_gigabytes": round(row.sent / 1e9, 3),
            "memory_gigabytes": round(row.memory / 1e9, 2),
            "passes_seconds": round(passes, 4),
            "sending_seconds": round(row.seconds, 4),
            "least_seconds": round(max(passes, row.seconds), 4),
            "most_seconds": round(passes + row.seconds, 4),
        })  # fmt: skip
    return rows


def main() -> None:
    """Tell all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--length", type=int, default=2048)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        rows = [
            row
            for name in MODELS
            for count in PROCESSES
            for row in told(name, count, Path(scratch), asked.batch_size, asked.length)
        ]
    note = (
        f"on paper: batches of {asked.batch_size} x {asked.length} tokens in each process, "
        f"{RATE / 1e12:g} TFLOP/s, {WIRE[8] / 1e9:g} GB/s up to 8 processes, {WIRE[64] / 1e9:g} "
        "beyond; nothing measured"
    )
    write("scale", rows, checks_of(rows), note=note)


def checks_of(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What a selection saves on the wire, beside what it saves in FLOPs."""
    sent = {
        (row["model"], row["processes"], row["parallel"], row["rho"]): row["sent_gigabytes"]
        for row in rows
    }
    shares = [
        bytes_ / sent[model, count, kind, 1.0]
        for (model, count, kind, rho), bytes_ in sent.items()
        if (kind, rho) == ("ddp", 0.5)
    ]
    return [check("replicas: most bytes sent at rho .5, share of full's", max(shares), 0.5)]


if __name__ == "__main__":
    main()
