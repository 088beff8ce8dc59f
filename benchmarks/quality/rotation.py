"""Sets of tensors that take turns: `python benchmarks rotation --data-dir FOLDER`.

With room for a share of the model's gradients and moments only, some tensors are trained at a time.
Which, and for how long?  The same loop trains SmolLM2 on WebQuestions with each answer; learning
rates are chosen for each by the loss on other training rows.  Runs on record are not made again.
"""

import argparse
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from shared.results import check, write
from torch import nn

from greentrainer import measure_importance
from greentrainer.config import RunConfig
from greentrainer.methods import METHODS
from greentrainer.model import blocks
from greentrainer.run import EpochOrder
from greentrainer.run import run as runs
from greentrainer.tasks import encode
from greentrainer.types import Batch, loss_of

Row = dict[str, Any]
Worth = Callable[[], dict[str, float]]

TURNS = 8
RATES = {
    "full": (5e-5, 1e-4, 2e-4, 4e-4),
    "lora": (5e-4, 1e-3, 2e-3, 4e-3),
    "sets": (2e-4, 4e-4, 8e-4),
}


class Sets:
    """Which tensors are trained at each turn.  room: elements that may be."""

    def __init__(self, model: nn.Module, policy: str, room: int, worth: Worth) -> None:
        self.model, self.policy, self.room, self.worth = model, policy, room, worth
        self.sizes = {name: p.numel() for name, p in model.named_parameters()}
        self.known: dict[str, float] | None = None
        self.turns = dict.fromkeys(self.sizes, 0)
        self.chance = random.Random(0)

    def at(self, turn: int) -> set[str]:
        """The names."""
        if self.policy == "blocks by lot":
            order = self._drawn()
        else:
            if self.known is None or self.policy != "best at first":
                self.known = self.worth()
            left = {name: self._counts(name) * max(w, 0) for name, w in self.known.items()}
            order = sorted(self.sizes, key=lambda n: left[n] / self.sizes[n], reverse=True)
        chosen: set[str] = set()
        for name in order:
            if sum(self.sizes[n] for n in chosen) + self.sizes[name] <= self.room:
                chosen.add(name)
        for name in chosen:
            self.turns[name] += 1
        return chosen

    def _counts(self, name: str) -> float:
        return 1 / (1 + self.turns[name]) if self.policy == "best, the rested first" else 1

    def _drawn(self) -> list[str]:
        found = blocks(self.model)
        self.chance.shuffle(found)
        inside = [{id(p) for p in block.parameters()} for block in found]
        return [n for ids in inside for n, p in self.model.named_parameters() if id(p) in ids]


def trained(
    config: RunConfig, policy: str, share: float, rate: float, console: Console
) -> tuple[float, float]:
    """Losses on the rows to choose by, and on those held out."""
    torch.manual_seed(config.seed)
    inputs = runs.prepare(config.model_copy(update={"learning_rate": rate}), console)
    model = METHODS["lora" if policy == "lora" else "full"].adapt(inputs.model, config)
    collate = encode.Collator(encode.pad_id(inputs.tokenizer), 8, config.max_length)
    groups = EpochOrder(inputs.train, config.batch_size, config.seed).groups()
    batches = [collate([inputs.train[i] for i in group]) for group in groups]
    judges = [collate(inputs.validation[i : i + 8]) for i in range(0, 16, 8)]
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: 1 - s / len(batches))
    model.train()

    def worth() -> dict[str, float]:
        for parameter in parameters:
            parameter.requires_grad_(True)
        rows = random.Random(len(optimizer.state)).sample(batches, 2)
        return measure_importance(model, rows, optimizer, judged_by=judges)

    sets = Sets(model, policy, int(share * sum(p.numel() for p in parameters)), worth)
    every = -(-len(batches) // TURNS)
    for step, batch in enumerate(batches):
        if policy not in ("full", "lora") and step % every == 0:
            names = sets.at(step // every)
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(name in names)
                if name not in names:
                    optimizer.state.pop(parameter, None)
                    parameter.grad = None
        loss_of(model, batch).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    rows = [inputs.validation, inputs.test]
    return tuple(_loss(model, [collate([one]) for one in part]) for part in rows)  # type: ignore


@torch.no_grad()
def _loss(model: nn.Module, batches: list[Batch]) -> float:
    """Per completion token."""
    model.eval()
    sums = [(float(loss_of(model, b)), int((b["labels"][:, 1:] != -100).sum())) for b in batches]
    return sum(loss * count for loss, count in sums) / sum(count for _, count in sums)


def main() -> None:
    """Run everything that is not on record; write `results/rotation.json`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", type=Path, help="folder that holds the data sets' folders")
    parser.add_argument("--rows", type=int, default=384)
    parser.add_argument("--record", type=Path, default=Path("runs/rotation.json"))
    parser.add_argument(
        "--shares", type=float, nargs="+", default=[0.1], help="of the elements, trained at a time"
    )
    parser.add_argument("--rates", type=float, nargs="+", default=RATES["sets"], help="of sets")
    parser.add_argument("--only", default="", help="policies whose name holds this")
    asked = parser.parse_args()
    console = Console(stderr=True)
    given: Row = {"task": "webquestions", "train_limit": asked.rows, "validation_limit": 96}
    given |= {"max_length": 128, "batch_size": 8, "output_dir": Path("runs/rotation")}
    given |= {"lora_targets": "all-linear"}
    if asked.data_dir:
        given["data_dir"] = asked.data_dir / "webquestions"
    config = RunConfig(**given)
    kinds = ("best at first", "best anew", "best, the rested first", "blocks by lot")
    policies = [("full", 1.0), ("lora", 1.0)]
    policies += [(name, share) for share in asked.shares for name in kinds]
    known: dict[str, Any] = {}
    if asked.record.is_file():
        known = json.loads(asked.record.read_text(encoding="utf-8"))
    rows: list[Row] = []
    for policy, share in policies:
        losses = {}
        for rate in RATES.get(policy, asked.rates):
            key = f"{policy}, {share:g}, {rate:g}, {asked.rows}"
            if key not in known and asked.only in policy:
                known[key] = trained(config, policy, share, rate, console)
                asked.record.parent.mkdir(parents=True, exist_ok=True)
                asked.record.write_text(json.dumps(known, indent=1), encoding="utf-8")
                print(key, known[key], flush=True)
            if key in known:
                losses[rate] = known[key]
        if losses:
            best = min(losses, key=lambda rate: losses[rate][0])
            edge = len(losses) == 1 or best in (min(losses), max(losses))
            row = {"run": policy, "share": share, "rate": best, "at the grid's edge": edge}
            rows.append(row | {"loss": losses[best][1]})
    full = rows[0]["loss"]
    for row in rows:
        row["loss / full"] = row["loss"] / full
    lot = {row["share"]: row["loss"] for row in rows if row["run"] == "blocks by lot"}
    checks = [
        check(f"{row['run']}, {row['share']:g}: loss / blocks by lot", row["loss"] / lot[one], 1)
        for row in rows
        if (one := row["share"]) in lot and row["run"].startswith("best")
    ]
    note = (
        f"SmolLM2-135M, fp32, {asked.rows} questions of WebQuestions, one pass in batches of 8, "
        f"{TURNS} turns; a tensor whose turn is over loses its moments. share: of the model's "
        "elements that are trained at a time."
    )
    write("rotation", rows, checks, [0], note)


if __name__ == "__main__":
    main()
