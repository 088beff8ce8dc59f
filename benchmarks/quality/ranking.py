"""Whether worth per cost ranks ways to train a step as training does: `python benchmarks ranking`.

Each way (positions that gradient passes through, part of the prompt that is read, or a fixed set of
tensors) is trained under one budget, with as many steps as that pays for.  Before that its worth to
other rows is measured on `PAIRS` pairs of batches of the model as it is, without what the product
knows beforehand, and its cost is told from the graphs: progress = worth * min(N, B / cost).  Runs
that have a record in `runs/NAME` are not made again.
"""

import argparse
from functools import partial
from math import inf
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from scipy.stats import spearmanr
from shared.results import check, write

from greentrainer.compare import Study, read
from greentrainer.compare.spec import Spec
from greentrainer.config import RunConfig
from greentrainer.engine import GraphCache
from greentrainer.forward import LabelledHead, SplitForward
from greentrainer.importance import Judge, Pair, measure_worth
from greentrainer.methods import METHODS
from greentrainer.run import EpochOrder, prepare
from greentrainer.select import Blind
from greentrainer.tasks import encode
from greentrainer.types import PARTS, CostGraph

Row = dict[str, Any]
Way = tuple[int | None, str | None]
"""Positions of a prompt that gradient passes through, and what is read of those before."""

SPECS = {"ranking_webquestions": "webquestions", "ranking_dialogsum": "dialogsum"}
"""Comparison -> the published data set it is on."""
PAIRS = 6
LEAST = 0.8
"""Rank correlation of predicted progress and held-out loss, its sign turned."""
COLUMNS = ("part", "label", "cost", "worth", "progress", "loss", "flops / full", "steps / asked")


def way_of(config: RunConfig) -> Way:
    """How a run's steps go through their prompts."""
    tail = None if config.positions in ("all", None) else int(config.positions)
    return tail, None if config.prompts == "whole" else config.prompts


def predicted(spec: Spec) -> dict[str, Row]:
    """Cost and worth of a step, as shares of a whole step's, and progress, of each row."""
    configs = {variant.label: variant.config for variant in spec.variants()}
    config = spec.variants()[0].config
    inputs = prepare(config, Console(quiet=True))
    model = inputs.model.train()
    collate = encode.Collator(
        encode.pad_id(inputs.tokenizer), config.pad_multiple, config.max_length
    )
    groups = EpochOrder(inputs.train, config.batch_size, config.seed).groups()
    home = next(model.parameters()).device
    batches = [
        encode.placed(collate([inputs.train[i] for i in rows]), home)
        for rows in groups[: 2 * PAIRS]
    ]
    pairs = [Pair(one, other) for one, other in zip(batches[::2], batches[1::2], strict=True)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate)
    split, head = SplitForward(model), LabelledHead(model)
    split.coarse = False
    names = [name for name, _ in model.named_parameters()]
    graphs = GraphCache(model, model.parameters(), None, head=head, split=split)
    judges: list[Judge] = []
    measured: dict[Way, dict[str, float]] = {}
    graphs_of: dict[Way, list[CostGraph]] = {}
    with head.on():
        for tail, part in dict.fromkeys([(None, None), *map(way_of, configs.values())]):
            at = partial(split.at, part=PARTS[part] if part else None)
            found = measure_worth(model, pairs, optimizer, None, {tail: names}, at, judges)
            measured[tail, part] = {
                name: sum(values[tail].get(name, 0.0) for values in found) for name in names
            }
            with at(tail):
                graphs_of[tail, part] = [graphs.of_batch(batch) for batch in batches]
    plain = GraphCache(model, model.parameters(), None)
    with head.off(), split.at(None):
        logits = [plain.of_batch(batch) for batch in batches]
    steps, (_, rho) = len(groups), config.budget
    rows = {}
    for label, own in configs.items():
        told = logits if own.stop_early else graphs_of[way_of(own)]
        trained = trained_by(own, model, told[0])
        spent = sum(graph.forward_flops + graph.backward_flops(trained) for graph in told)
        cost = spent / sum(graph.full_flops for graph in told)
        values = measured[way_of(own)]
        worth = sum(values[name] for name in trained) / sum(measured[None, None].values())
        progress = worth * min(steps, rho * steps / cost)
        rows[label] = {"cost": cost, "worth": worth, "progress": progress}
    return rows


def trained_by(config: RunConfig, model: Any, graph: CostGraph) -> tuple[str, ...]:
    """Names of the tensors that a method's rule trains; all of them for one without a rule."""
    selector = METHODS[config.method].selector(model, config)
    if isinstance(selector, Blind):
        return selector.choose(graph, inf, 0).names
    return tuple(graph.tensors)


def main() -> None:
    """Measure, train, and write the figures down."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", type=Path, help="folder that holds the data sets' folders")
    parser.add_argument("--only", choices=[*SPECS], action="append")
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side")
    asked = parser.parse_args()
    rows: list[Row] = []
    checks: list[Row] = []
    notes = []
    seeds: set[int] = set()
    for part, task in SPECS.items():
        if asked.only and part not in asked.only:
            continue
        where = {"data_dir": str(asked.data_dir / task)} if asked.data_dir else {}
        spec = read(Path(__file__).parent / f"{part}.yaml", {"run": where})
        told = predicted(spec)
        seeds |= set(spec.seeds)
        results = Study(spec, Console(), jobs=asked.jobs).execute()
        bills = {record["label"]: record.get("bill", {}) for record in results["records"]}
        own = [
            {"part": part, **row, **told[row["label"]]} for row in results["rows"] if "loss" in row
        ]
        for row in own:
            bill = bills[row["label"]]
            row["steps / asked"] = bill["steps"] / bill["steps_asked"]
        losses, progress = [r["loss"] for r in own], [r["progress"] for r in own]
        ranked = float(spearmanr(progress, [-loss for loss in losses]).statistic)
        checks.append(check(f"{part}: rank correlation", ranked, LEAST, at_most=False))
        checks.append(check(f"{part}: ways compared", len(own), 6, at_most=False))
        rows += own
        notes.append(f"{part}: {spec.note.strip()}")
    shown = Table(*COLUMNS)
    for row in rows:
        shown.add_row(*(_told(row.get(column)) for column in COLUMNS))
    write("ranking", rows, checks, sorted(seeds), " ".join(notes), shown)


def _told(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)
