"""What a budget could be spent on, measured on the task's rows before anything is trained."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from greentrainer.budget import Budget
from greentrainer.config import RunConfig
from greentrainer.engine import AdaptiveBackprop
from greentrainer.forward import ForwardOptions
from greentrainer.run import EpochOrder, packing_collator, prepare
from greentrainer.tasks import encode
from greentrainer.types import way_of


@dataclass(frozen=True)
class Probed:
    """The alternatives, the best first, as plain values; and how many steps there are."""

    alternatives: list[dict[str, Any]]
    asked: int
    budget: str

    def table(self) -> Table:
        """For a terminal."""
        shown = Table(
            title=f"what {self.budget} could be spent on, of {self.asked} steps",
            title_justify="left",
            caption="cost and worth: of a step, as shares of a whole step's; worth to other rows",
        )
        shown.caption_justify = "left"
        for name in ("positions", "tensors", "cost", "worth", "steps", "progress", ""):
            shown.add_column(name, justify="right")
        for one in self.alternatives:
            shown.add_row(
                way_of(one),
                str(one["tensors"]),
                f"{one['cost']:.2f}",
                f"{one['value']:.2f}",
                f"{one['steps']:.0f}",
                f"{one['progress']:.1f}",
                "taken" if one["chosen"] else "",
            )
        return shown


def probe(config: RunConfig, console: Console) -> Probed:
    """Load model and task, measure what steps are worth, and weigh them for the run's budget.

    Raises ValueError for a budget that is counted in time: rates are not measured here.
    """
    unit, amount = config.budget
    if unit not in ("rho", "flops"):
        raise ValueError(f"plan --probe weighs a rho or flops, not {unit}: give one of these")
    inputs = prepare(config, console)
    model = inputs.model.train()
    device = next(model.parameters()).device
    order = EpochOrder(inputs.train, config.batch_size, config.seed)
    told = partial(console.print, markup=False)
    collate, _ = packing_collator(config, model, inputs.tokenizer, inputs.train, told)
    batches = [
        encode.placed(collate([inputs.train[i] for i in rows]), device)
        for rows in order.groups()[: config.probe_batches]
    ]
    one_pass = len(order.groups())

    half = torch.autocast(device.type, torch.bfloat16, enabled=config.bf16)
    with (
        half,
        AdaptiveBackprop(
            model,
            torch.optim.AdamW(model.parameters(), lr=config.learning_rate, fused=True),
            batches[0],
            rho=Budget(unit, amount),
            total_batches=one_pass * config.epochs,
            fresh=one_pass,
            forward=ForwardOptions(labelled_head=config.labelled_head is not False),
            positions="choose",
            steps="choose",
            prompts=config.prompts,
        ) as engine,
    ):
        engine.reselect(batches)
        [event] = engine.history
    return Probed(event["alternatives"], one_pass * config.epochs, f"{unit} {amount:g}")
