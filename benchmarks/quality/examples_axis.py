"""Which examples get a backward pass: `python benchmarks examples_axis --data-dir FOLDER`.

The third axis, tried: the loss of every training example is computed first, and only half of the
examples are trained on, those with the highest loss or any, by full fine-tuning of SmolLM2 on
SciTLDR. The passes that rank the examples are on the bill.
"""

import argparse
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from shared.results import write

from greentrainer.config import RunConfig
from greentrainer.cost import flop_counter
from greentrainer.run import RunInputs, evaluation
from greentrainer.run import run as runs
from greentrainer.run.training import fit
from greentrainer.tasks import Encoded, encode

Row = dict[str, Any]

ROWS, RATE = 96, 1e-4


def ranked(inputs: RunInputs) -> tuple[list[Encoded], int]:
    """Training examples, the highest loss per completion token first; and FLOPs of ranking them."""
    model = inputs.model.eval()
    collate = encode.Collator(encode.pad_id(inputs.tokenizer), 32, 256)
    with torch.no_grad(), flop_counter() as count:
        losses = [float(model(**collate([one])).loss) for one in inputs.train]
    order = sorted(range(len(losses)), key=losses.__getitem__, reverse=True)
    return [inputs.train[i] for i in order], count.get_total_flops()


def chosen(name: str, order: Sequence[Encoded]) -> list[Encoded]:
    """Half of the examples."""
    half = len(order) // 2
    picked = {
        "highest loss": order[:half],
        "any": random.Random(0).sample(list(order), half),
    }
    return list(picked[name])


def main() -> None:
    """Run, and write the figures down."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data-dir", type=Path, help="the data set's files; the hub's without it")
    asked = parser.parse_args()
    config = RunConfig(
        task="scitldr", data_dir=asked.data_dir, method="full", train_limit=ROWS,
        validation_limit=16, test_limit=40, max_length=256, pad_multiple=32, bf16=True,
        learning_rate=RATE, output_dir=Path("runs/examples_axis"),
    )  # fmt: skip
    rows: list[Row] = []
    for name in ("highest loss", "any"):
        inputs = runs.prepare(config, Console())
        order, ranking = ranked(inputs)
        outcome = fit(
            config, inputs.model, inputs.tokenizer, chosen(name, order), inputs.validation
        )
        full_flops = 2 * sum(outcome.plain_steps)  # about: it was half of the examples
        ranking = 0 if name == "any" else ranking
        spent = outcome.engine.ledger.spent_flops + ranking
        rows.append(
            {
                "trained on": name,
                "loss": evaluation.loss(inputs, inputs.test, config),
                "flops / full, about": spent / full_flops,
            }
        )
        print(rows[-1], flush=True)
    write("examples_axis", rows, [], [0], f"48 of {ROWS} examples, learning rate {RATE:g}.")
