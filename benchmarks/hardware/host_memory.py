"""Training steps of OPT-2.7B in bfloat16 in a desktop's memory: `python benchmarks host_memory`.

Random weights, 4 rows of 256 tokens of which the last quarter is labelled, rho 0.36, logits on
labelled positions only, no GPU.  Each optimizer has a process of its own, whose peak resident
memory from its birth on counts: building the model, tracing, the probe and the steps.

`--tiny` does the same with two small layers, and writes nothing.
"""

import argparse
import multiprocessing
import resource
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch
import transformers as tf
from paper.paper_models import CONFIGS, opt
from shared.results import check, write

from greentrainer import AdaptiveBackprop
from greentrainer.forward import ForwardOptions

Row = dict[str, Any]

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=1e-3),
    "Adafactor": lambda parameters: torch.optim.Adafactor(parameters, lr=1e-3),
}
ROWS, LENGTH = 4, 256
RHO, STEPS = 0.36, 4
LONG_RUN = 1000
"""Batches of the run that the engine is told of, so that one probe is a small part of it."""
LIMIT = 20 * 2**30


def batch(config: Any, seed: int) -> dict[str, torch.Tensor]:
    """Random tokens; the last quarter of each row is labelled."""
    chance = torch.Generator().manual_seed(seed)
    ids = torch.randint(4, config.vocab_size, (ROWS, LENGTH), generator=chance)
    labels = ids.clone()
    labels[:, : -LENGTH // 4] = -100
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def measure(name: str, tiny: bool) -> Row:
    """Train a few steps in this process."""
    torch.manual_seed(0)
    config = opt(64, 2, 4) if tiny else CONFIGS["opt-2.7b"]()
    model: Any = tf.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).train()
    optimizer = OPTIMIZERS[name](model.parameters())
    with AdaptiveBackprop(
        model,
        optimizer,
        batch(config, 0),
        rho=RHO,
        total_batches=LONG_RUN,
        every=LONG_RUN,
        forward=ForwardOptions(labelled_head=True),
    ) as engine:
        chosen = engine.reselect([batch(config, 0)])
        losses = []
        for step in range(STEPS):
            loss: Any = engine.loss(batch(config, 1 + step))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
    steps = [entry for entry in engine.ledger if entry.kind == "train"]
    return {
        "optimizer": name,
        "parameters": sum(p.numel() for p in model.parameters()),
        "tensors trained": len(chosen.names),
        "parameters trained": sum(engine.graph.sizes[n] for n in chosen.names),
        "step: flops / full": max(entry.flops / entry.full_flops for entry in steps),
        "first loss": losses[0],
        "last loss": losses[-1],
        "peak bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def send(name: str, tiny: bool, into: Connection) -> None:
    """In the new process."""
    into.send(measure(name, tiny))


def in_own_process(name: str, tiny: bool) -> Row:
    """What `measure` finds in a fresh process."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=send, args=(name, tiny, there))
    process.start()
    there.close()
    try:
        found: Row = here.recv()
    except EOFError:
        process.join()
        raise SystemExit(f"{name}: the process ended with exit code {process.exitcode}") from None
    process.join()
    return found


def main() -> None:
    """Measure, and write the figures down."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--tiny", action="store_true")
    tiny = parser.parse_args().tiny
    rows = [in_own_process(name, tiny) for name in OPTIMIZERS]
    if tiny:
        for row in rows:
            print(row)
        return
    checks = [
        *(check(f"{row['optimizer']}: peak bytes", row["peak bytes"], LIMIT) for row in rows),
        *(
            check(f"{row['optimizer']}: step's FLOPs / full's", row["step: flops / full"], RHO)
            for row in rows
        ),
    ]
    write("host_memory", rows, checks, [0], "OPT-2.7B, bfloat16, random weights, no GPU.")
