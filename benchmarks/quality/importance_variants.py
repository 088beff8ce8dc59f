"""Other ways to measure importance: `python benchmarks importance_variants --data-dir FOLDER`.

The setting is that of `importance.yaml`: SmolLM2 on SciTLDR, gradient through all positions, rho
0.5, probes on the bill. Beside first-order importance, as shipped:

* averaged: the mean of the importance at all selections so far;
* per_cost: importance divided by the number of elements, to which the FLOPs of a weight's gradient
  are proportional;
* cross_batch: the probe's rows are halved, and the update that one half would make is judged by the
  gradient of the other;
* running: one probe, at the first selection; from then on each tensor's importance follows what its
  own steps did to the loss, to first order, in training; where a tensor was not trained, the median
  of the others;
* once: one probe, and no more, to tell apart what running saves and what it knows.

A run with a record in `runs/importance_variants` is not made again.
"""

import argparse
import json
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from shared.results import check, write
from torch import nn

from greentrainer.config import RunConfig, read_mapping
from greentrainer.importance import Metric, measure_importance
from greentrainer.importance import metrics as scoring
from greentrainer.importance.gradients import dot_of_change
from greentrainer.importance.update import updated_weights
from greentrainer.model import preserved
from greentrainer.run import evaluation
from greentrainer.run import run as runs
from greentrainer.run.training import fit
from greentrainer.types import Batch, Importance, LossFn, loss_of

Row = dict[str, Any]
Optimizer = torch.optim.Optimizer

RECORDS = Path("runs/importance_variants")
RATES, SEEDS = (2e-4, 4e-4), (0, 1, 2)
EARLY, DECAY, WATCHED = 4, 0.8, 1 << 14


@dataclass(frozen=True)
class Probe:
    """What a metric is asked: the importance of `names`."""

    model: nn.Module
    batches: Sequence[Batch]
    optimizer: Optimizer
    loss_fn: LossFn | None
    names: Sequence[str]

    def first_order(self) -> Importance:
        """As shipped."""
        own = self.model, self.batches, self.optimizer, self.loss_fn, self.names
        return measure_importance(*own)


def metric(measure: Callable[[Probe], Importance]) -> Metric:
    """The metric that answers so."""
    return Metric(lambda *asked: measure(Probe(*asked)))


def averaged() -> Metric:
    """The mean over all selections so far."""
    seen: dict[str, list[float]] = defaultdict(list)

    def measure(probe: Probe) -> Importance:
        for name, value in probe.first_order().items():
            seen[name].append(value)
        return {name: statistics.mean(seen[name]) for name in probe.names}

    return metric(measure)


def per_cost() -> Metric:
    """Per element."""

    def measure(probe: Probe) -> Importance:
        sizes = {name: p.numel() for name, p in probe.model.named_parameters()}
        found = probe.first_order()
        return {name: value / sizes[name] for name, value in found.items()}

    return metric(measure)


def cross_batch() -> Metric:
    """Half of the rows judge the update that the other half would make, both ways."""

    def measure(probe: Probe) -> Importance:
        model, batches, optimizer = probe.model, probe.batches, probe.optimizer
        chosen = {n: p for n, p in model.named_parameters() if n in set(probe.names)}
        groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
        total = dict.fromkeys(chosen, 0.0)
        for batch in batches:
            with preserved(model, chosen.keys()):
                one, other = (
                    _gradients(model, half, probe.loss_fn, chosen) for half in _halves(batch)
                )
            for (name, p), a, b in zip(chosen.items(), one, other, strict=True):
                for own, judge in ((a, b), (b, a)):
                    new = updated_weights(optimizer, groups[id(p)], p, own)
                    total[name] -= dot_of_change(p, new, judge) / (2 * len(batches))
        return total

    return metric(measure)


def _halves(batch: Mapping[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
    rows = len(batch["input_ids"])
    parts = (slice(0, rows // 2), slice(rows // 2, rows))
    return [{name: tensor[part] for name, tensor in batch.items()} for part in parts]


def _gradients(
    model: nn.Module, batch: Batch, loss_fn: LossFn | None, chosen: Mapping[str, nn.Parameter]
) -> Sequence[torch.Tensor]:
    return torch.autograd.grad(loss_of(model, batch, loss_fn), list(chosen.values()))


class Steps:
    """Of each tensor that is trained, what its steps did to the loss since the last selection.

    At most `WATCHED` elements of a tensor, evenly spaced, are watched.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer) -> None:
        self.names = {id(p): name for name, p in model.named_parameters()}
        self.early: dict[str, list[float]] = defaultdict(list)
        self.late: dict[str, float] = {}
        self._before: dict[str, tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = {}
        optimizer.register_step_pre_hook(self._about_to_step)
        optimizer.register_step_post_hook(self._stepped)

    def trends(self) -> dict[str, float]:
        """Late effect of a step over early effect, for each tensor trained; then forget all."""
        found = {
            name: max(self.late[name], 0.0) / first
            for name, values in self.early.items()
            if name in self.late and (first := statistics.mean(values)) > 0
        }
        self.early.clear()
        self.late.clear()
        return found

    def _about_to_step(self, optimizer: Optimizer, *_: Any) -> None:
        for group in optimizer.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    every = -(-p.numel() // WATCHED)
                    weight, gradient = (t.detach().reshape(-1)[::every] for t in (p, p.grad))
                    rate = torch.tensor(group["lr"])
                    name = self.names[id(p)]
                    self._before[name] = weight.clone(), gradient.clone(), rate
        self._weights = {n: p for n, p in self._parameters(optimizer) if n in self._before}

    def _parameters(self, optimizer: Optimizer) -> Iterable[tuple[str, nn.Parameter]]:
        for group in optimizer.param_groups:
            for p in group["params"]:
                yield self.names[id(p)], p

    def _stepped(self, *_: Any) -> None:
        for name, (before, gradient, rate) in self._before.items():
            p = self._weights[name]
            now = p.detach().reshape(-1)[:: -(-p.numel() // WATCHED)]
            if float(rate) > 0:  # a step at the rate's first, zero, value says nothing
                self._note(name, -float((now - before) @ gradient) / float(rate))
        self._before.clear()

    def _note(self, name: str, value: float) -> None:
        if len(self.early[name]) < EARLY:
            self.early[name].append(value)
        else:
            self.late[name] = DECAY * self.late.get(name, value) + (1 - DECAY) * value


def running() -> Metric:
    """One probe; then what training itself shows."""
    state: dict[str, Any] = {}

    def measure(probe: Probe) -> Importance:
        if not state:
            found = probe.first_order()
            state.update(steps=Steps(probe.model, probe.optimizer), importance=dict(found))
            own.passes = 0
            return found
        trends = state["steps"].trends()
        usual = statistics.median(trends.values()) if trends else 1.0
        old: dict[str, float] = state["importance"]
        state["importance"] = {n: v * trends.get(n, usual) for n, v in old.items()}
        return {name: state["importance"].get(name, 0.0) for name in probe.names}

    own = metric(measure)
    return own


def once() -> Metric:
    """One probe, and what it found from then on."""
    found: dict[str, float] = {}

    def measure(probe: Probe) -> Importance:
        if not found:
            found.update(probe.first_order())
            own.passes = 0
        return {name: found.get(name, 0.0) for name in probe.names}

    own = metric(measure)
    return own


VARIANTS: dict[str, Callable[[], Metric]] = {
    "first_order": lambda: Metric(measure_importance),
    "averaged": averaged,
    "per_cost": per_cost,
    "cross_batch": cross_batch,
    "once": once,
    "running": running,
}


def made(config: RunConfig, variant: str, rate: float, seed: int) -> Row:
    """The record of one run, made if there is none."""
    path = RECORDS / f"{variant}-{rate:g}-{seed}.json"
    if path.exists():
        record: Row = json.loads(path.read_text())
        return record
    scoring.METRICS["variant"] = VARIANTS[variant]()
    changes = {"metric": "variant", "learning_rate": rate, "seed": seed}
    own = config.model_copy(update=changes)
    inputs = runs.prepare(own, Console(quiet=True))
    outcome = fit(own, inputs.model, inputs.tokenizer, inputs.train, inputs.validation)
    ledger = outcome.engine.ledger
    row = {
        "importance": variant,
        "learning rate": rate,
        "seed": seed,
        "validation loss": evaluation.loss(inputs, inputs.validation, own),
        "loss": evaluation.loss(inputs, inputs.test, own),
        "flops / full": ledger.spent_flops / sum(outcome.plain_steps),
        "probes / spent": ledger.probe_flops / ledger.spent_flops,
    }
    RECORDS.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(row))
    print(row, flush=True)
    return row


def main() -> None:
    """Run, and write the figures down."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data-dir", type=Path, help="the data set's files; the hub's without it")
    asked = parser.parse_args()
    settings = read_mapping(Path(__file__).parent / "importance.yaml")["run"]
    config = RunConfig(**settings, data_dir=asked.data_dir, output_dir=RECORDS, rho=0.5)
    rows = []
    for variant in VARIANTS:
        tried = [made(config, variant, rate, SEEDS[0]) for rate in RATES]
        best = min(tried, key=lambda row: float(row["validation loss"]))
        found = [made(config, variant, best["learning rate"], seed) for seed in SEEDS]
        losses = [float(row["loss"]) for row in found]
        rows.append(
            {
                "importance": variant,
                "learning rate": best["learning rate"],
                "loss": statistics.mean(losses),
                "loss sd": statistics.stdev(losses),
                "flops / full": statistics.mean(float(row["flops / full"]) for row in found),
                "probes / spent": statistics.mean(float(row["probes / spent"]) for row in found),
                "losses": losses,
            }
        )
    shipped = rows[0]["loss"]
    checks = [
        check(f"first_order is no worse than {row['importance']}", shipped, row["loss"])
        for row in rows[1:]
    ]
    note = "SciTLDR, 96 rows, one epoch, rho 0.5; rates chosen on other training rows."
    write("importance_variants", rows, checks, SEEDS, note)
