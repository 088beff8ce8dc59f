"""Activation memory by positions trained: `python benchmarks positions_memory --data-dir DIR`.

Bytes that one forward pass of SmolLM2 on a batch of SciTLDR saves for its backward pass, each piece
of memory counted once and parameters not, for tails of some lengths; every tensor is trained. The
yardstick is plain full fine-tuning of the same batch.
"""

import argparse
import gc
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from shared.results import check, write

from greentrainer.config import RunConfig
from greentrainer.forward import LabelledHead, SplitForward
from greentrainer.run import EpochOrder
from greentrainer.run import run as runs
from greentrainer.tasks import encode

Row = dict[str, Any]

TAILS = (0, 16, 32, 64, 128)
NEAR = 0.1
"""How much above the share of its positions the memory of a tail may be: keys and values of the
prefix are kept for the tail's attention."""


def saved_bytes(model: Any, batch: Any) -> int:
    """Memory that is kept for the backward pass, without that of parameters."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    seen: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            seen[storage.data_ptr()] = storage.nbytes()
        kept.append(tensor)  # so that no address is given away twice
        return tensor

    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = model(**batch).loss
    del loss
    kept.clear()
    gc.collect()
    return sum(seen.values())


def main() -> None:
    """Measure, and write the figures down."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data-dir", type=Path, help="the data set's files; the hub's without it")
    asked = parser.parse_args()
    config = RunConfig(
        task="scitldr", data_dir=asked.data_dir, train_limit=96, test_limit=4, max_length=256,
        pad_multiple=32,
    )  # fmt: skip
    inputs = runs.prepare(config, Console())
    model = inputs.model.train()
    collate = encode.Collator(encode.pad_id(inputs.tokenizer), 32, 256)
    groups = EpochOrder(inputs.train, 4, 0).groups()
    batches = [collate([inputs.train[i] for i in rows]) for rows in groups[:2]]
    split = SplitForward(model)
    plain = sum(saved_bytes(model, batch) for batch in batches)
    head = LabelledHead(model)
    positions = sum(batch["labels"].numel() for batch in batches)
    rows: list[Row] = [{"what": "plain full fine-tuning", "bytes": plain, "bytes / full": 1.0}]
    for tail in (*TAILS, None):
        with split.at(tail):
            found = sum(saved_bytes(model, batch) for batch in batches)
            cuts = [split.cut(batch) for batch in batches]
        lengths = [
            where.tail if where else batch["labels"].shape[1]
            for where, batch in zip(cuts, batches, strict=True)
        ]
        trained = 4 * sum(lengths)
        rows.append(
            {
                "what": "labelled head" if tail is None else f"labelled head, positions {tail}",
                "bytes": found,
                "bytes / full": found / plain,
                "positions / full": trained / positions,
            }
        )
    head.close()
    split.close()
    checks = [
        check(
            f"{row['what']}: share of memory less share of positions",
            row["bytes / full"] - row["positions / full"],
            NEAR,
        )
        for row in rows[1:-1]
    ]
    note = "fp32; positions with the padding of tails; 'full' is plain full fine-tuning."
    write("positions_memory", rows, checks, [0], note)
