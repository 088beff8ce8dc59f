"""The page of one run: `report.html`, one file, drawn from the run's folder alone.

It says how the run stands, also when that is half way or broken off, and invents nothing: what the
folder does not hold is not there.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader
from matplotlib.figure import Figure

from greentrainer.records import write_text
from greentrainer.report import account, choices, run_plots, theme
from greentrainer.report.record import RunRecord, read
from greentrainer.types import way_of

MOST_LINES = 200
"""Of a table of steps or selections."""
MOST_TENSORS = 1200
MOST_PREDICTIONS = 16
MOST_CHARACTERS = 1200
"""Of a text."""
SELECTION_HEAD = [
    "selection", "before step", "why", "tensors", "batches in force", "backward pass of budget",
    "of the optimum", "seconds", "prompt positions", "saved by positions",
]  # fmt: skip
"""The last two only where positions were chosen."""


@dataclass(frozen=True)
class Table:
    """head: columns; body: lines of text; left_out: lines that are not shown."""

    head: Sequence[str]
    body: Sequence[Sequence[str]]
    left_out: int = 0


@dataclass(frozen=True)
class Picture:
    """svg: safe to put into a page; table: its numbers."""

    title: str
    svg: str
    says: str
    table: Table


def write(folder: Path) -> Path:
    """Draw `report.html` into the folder; returns its path.

    Raises ValueError, in one line, for a folder whose record cannot be read.
    """
    path = folder / "report.html"
    write_text(path, page(read(folder)))
    return path


def page(record: RunRecord) -> str:
    """The page as HTML."""
    bill = account.account_of(record)
    events = choices.numbered(record) if record.tensors else []
    pictures = Environment(loader=PackageLoader("greentrainer.report"), autoescape=True)
    html: str = pictures.get_template("run.html.j2").render(
        record=record,
        title=f"{record.config['model']} on {record.task}",
        headline=headline(record, bill),
        standing=standing(record),
        account=bill,
        lines=account.lines_of(bill) if record.ledger else [],
        notes=account.notes_of(bill),
        quality=Table(*account.quality_of(record.metrics)),
        pictures=list(_pictures(record, events)),
        selections=_selections(record, events),
        predictions=predictions(record),
        moment=account.moment,
    )
    return html


def headline(record: RunRecord, bill: account.Account) -> str:
    """What came of the run, in one sentence."""
    config = record.config
    what = f"{config['model']} fine-tuned on {record.task} by method {config['method']}"
    if bill.share is None:
        return f"{what}: nothing was trained yet."
    spent = f"for {bill.share:.1%} of full fine-tuning's FLOPs"
    before, after = record.metrics.get("before"), record.metrics.get("after")
    if before and after:
        change = f"held-out loss {before['loss']:.3f} before, {after['loss']:.3f} after"
        return f"{what} {spent}: {change}."
    return f"{what} {spent} so far; the model as it is now was not evaluated."


def standing(record: RunRecord) -> str:
    """How the run ended, or how far it has come, in a sentence or two."""
    state, made = record.state, record.steps_made
    planned = state["planned_steps"]
    far = f"after {made} of {planned} steps" if planned else "before the first step"
    text = {
        "done": f"Done {far}.",
        "interrupted": f"Interrupted {far}.",
        "failed": f"Failed {far}.",
        "running": f"Running, or killed: when this page was drawn the run stood {far} and had not "
        f"ended (last sign of life {account.moment(state['updated'])}).",
    }[record.status]
    ending = record.metrics.get("bill", {}).get("ending")
    if ending and record.status == "done":
        text += f" {ending[0].upper()}{ending[1:]}."
    if state["error"]:
        text += f" {record.shown(state['error'])}"
    if record.weights:
        text += f" The model began with {record.weights}."
    if state["resumed_at_step"]:
        text += f" It was resumed at step {state['resumed_at_step']}."
    return text


def _pictures(record: RunRecord, events: Sequence[Mapping[str, Any]]) -> Iterator[Picture]:
    """Those that there is something to draw in."""
    with theme.style():
        if record.steps:
            yield _loss(record, events)
        if events and record.batches:
            yield from _chosen(record, [dict(event) for event in events])
        if record.tensors:
            yield _costs(record)


def _loss(record: RunRecord, events: Sequence[Mapping[str, Any]]) -> Picture:
    evaluations = [row for row in record.log if "eval_loss" in row]
    metrics, made = record.metrics, record.steps_made
    held_out = {0: metrics["before"]["loss"]} if "before" in metrics else {}
    if "after" in metrics:
        held_out[made] = metrics["after"]["loss"]
    chosen = choices.steps_of(record, [event["batch"] for event in events])
    found = {row["step"]: f"{row['eval_loss']:.4f}" for row in evaluations}
    lines = [
        [str(row["step"]), f"{row['loss']:.4f}", found.get(row["step"], ""),
         account.flops(row["spent_flops"])]
        for row in record.steps
    ]  # fmt: skip
    return _picture(
        run_plots.loss_curve(record.steps, evaluations, chosen, held_out),
        "Loss",
        "Dotted lines: tensors were chosen anew."
        + (
            f" Means of {math.ceil(len(lines) / run_plots.MOST_POINTS)} steps."
            if len(lines) > run_plots.MOST_POINTS
            else ""
        ),
        _cut(["step", "training loss", "evaluation", "spent so far"], lines),
    )


def _chosen(record: RunRecord, events: list[dict[str, Any]]) -> Iterator[Picture]:
    tensors, panels = record.tensors, choices.panels(record, events)
    often = choices.shares(record, events)
    when = {
        tensor["name"]: choices.ranges([e["number"] for e in events if i in set(e["tensors"])])
        for i, tensor in enumerate(tensors)
    }
    names = [(tensor["name"], share) for tensor, share in zip(tensors, often, strict=True)]
    table = _tensors(
        ["tensor", "of batches", "in selections"],
        [[name, f"{share:.1%}", when[name]] for name, share in names],
    )
    places = "Blank: there is no such tensor. Tensors outside of the blocks stand in column 0."
    yield _picture(
        run_plots.maps(tensors, panels, None, shares=True),
        "What was chosen",
        f"Light (yellow) is trained, dark (blue) frozen. {places} At most {choices.PANELS} are "
        f"drawn, evenly spaced, of {len(events)} selections; those that follow each other with "
        "the same tensors are one.",
        table,
    )
    yield _picture(
        run_plots.maps(tensors, {"": often}, "of batches", shares=True),
        "How often each tensor was trained",
        places,
        table,
    )
    measured = choices.importances(record, events)
    if measured:
        yield _importance(record, measured)
    weighed = [event for event in events if event.get("alternatives")]
    if weighed:
        yield _weighed(weighed)
    tails = choices.tails(record, events)
    if any(event["tail"] is not None for event in tails):
        yield _tails(record, tails)


def _weighed(events: Sequence[Mapping[str, Any]]) -> Picture:
    lines = [
        [str(event["number"]), way_of(one),
         str(one["tensors"]), f"{one['cost']:.3f}", f"{one['value']:.3f}", f"{one['steps']:.0f}",
         f"{one['progress']:.1f}", "taken" if one["chosen"] else ""]
        for event in events
        for one in event["alternatives"]
    ]  # fmt: skip
    return _picture(
        run_plots.alternatives(events[: choices.PANELS]),
        "What the budget could have been spent on",
        "Each mark is a way to train a step: prompt positions that gradient passes through (beside "
        "it), its cost and its worth as shares of a whole step's; larger marks could be made more "
        "often. The filled one was taken: the greatest worth times steps.",
        Table(
            ["selection", "positions", "tensors", "cost", "worth", "steps", "progress", ""],
            lines[:MOST_LINES],
            max(0, len(lines) - MOST_LINES),
        ),
    )


def _importance(record: RunRecord, measured: Mapping[str, Sequence[float]]) -> Picture:
    columns = list(measured.values())
    lines = [
        [tensor["name"], *(_number(column[i]) for column in columns)]
        for i, tensor in enumerate(record.tensors)
    ]
    return _picture(
        run_plots.maps(record.tensors, measured, "importance", shares=False),
        "Importance",
        f"As metric {record.config['metric']} measured it; darkest: none or below. Blank: not "
        "measured, being out of reach of the budget, or no such tensor.",
        _tensors(["tensor", *measured], lines),
    )


def _tails(record: RunRecord, tails: Sequence[Mapping[str, Any]]) -> Picture:
    longest = max(
        [1, *(2 * event["tail"] for event in tails if event["tail"] is not None)]
        if any(event["tail"] is None for event in tails)
        else [event["tail"] for event in tails]
    )
    lines = [
        [str(event["number"]), way_of(event),
         account.flops(event["tail_saves_flops"]), f"{event['saves']:.1%}"]
        for event in tails
    ]  # fmt: skip
    return _picture(
        run_plots.tails(tails, longest),
        "Positions",
        "How many positions of each prompt, counted back from the completion, gradient passes "
        "through; and what that saves of a batch like the sample, as a share of full fine-tuning's "
        "FLOPs for it.",
        _cut(["selection", "prompt positions", "saves a batch", "of a full batch"], lines),
    )


def _costs(record: RunRecord) -> Picture:
    places, kinds = choices.places(record), choices.kinds(record)
    costs = record.costs
    flops = account.flops
    lines = [[row["place"], flops(row["own"]), flops(row["passed"])] for row in places]
    lines += [
        [f"all {row['kind']} ({row['tensors']} tensors, {row['elements']:,} elements)",
         flops(row["own"]), ""]
        for row in kinds
    ]  # fmt: skip
    return _picture(
        run_plots.cost_profile(places, kinds),
        "What gradients cost",
        f"For the sample batch. Forward pass {flops(costs['forward_flops'])}, backward pass "
        f"{flops(costs['full_backward_flops'])} with every tensor trained. t_dw: a tensor's own "
        "gradient. t_dy: what reaching a place adds to reaching those nearer the loss.",
        Table(["place or kind", "t_dw", "t_dy"], lines),
    )


def _selections(record: RunRecord, events: Sequence[Mapping[str, Any]]) -> Table:
    lines = choices.selection_lines(record, [dict(event) for event in events])
    shown = len(SELECTION_HEAD)
    if all(event["tail"] is None for event in events):
        shown -= 2
    return _cut(SELECTION_HEAD[:shown], [line[:shown] for line in lines])


def predictions(record: RunRecord) -> list[dict[str, Any]]:
    """Some of what the models before and after wrote, beside what was asked for."""
    before = record.metrics.get("before", {}).get("predictions", [])
    return [
        {
            "prompt": _savings(row["prompt"], from_end=True),
            "references": [_savings(text) for text in row["references"][:4]],
            "before": _savings(before[i]) if i < len(before) else None,
            "after": _savings(row["prediction"]),
        }
        for i, row in enumerate(record.predictions[:MOST_PREDICTIONS])
    ]


def _savings(text: str, from_end: bool = False) -> str:
    if len(text) <= MOST_CHARACTERS:
        return text
    return f"... {text[-MOST_CHARACTERS:]}" if from_end else f"{text[:MOST_CHARACTERS]} ..."


def _picture(figure: Figure, title: str, says: str, table: Table) -> Picture:
    return Picture(title, theme.themed(figure, title), says, table)


def _cut(head: Sequence[str], lines: Sequence[Sequence[str]]) -> Table:
    """Evenly spaced lines, where there are too many."""
    shown = account.thinned(lines, MOST_LINES)
    return Table(head, shown, len(lines) - len(shown))


def _tensors(head: Sequence[str], lines: Sequence[Sequence[str]]) -> Table:
    """The first tensors, where there are too many."""
    return Table(head, lines[:MOST_TENSORS], max(0, len(lines) - MOST_TENSORS))


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.3g}"
