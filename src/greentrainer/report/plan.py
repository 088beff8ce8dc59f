"""A plan as tables for a terminal, and as a page with its picture, from its figures alone."""

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader
from matplotlib.figure import Figure
from rich.table import Table

from greentrainer.report import plots

Plan = Mapping[str, Any]

WEIGHT, PASS = "#1b7837", "#a6dba0"


def head(plan: Plan) -> list[str]:
    """What is planned for, in a few lines."""
    batch = plan["batch"]
    lines = [
        f"{plan['model']}: {plan['kind']}, {plan['parameters'] / 1e6:.1f} M parameters in "
        f"{plan['tensors']} tensors, {plan['blocks']} blocks",
        f"{plan['data']}; epochs: {plan['epochs']}",
        f"full fine-tuning: {plan['full_flops'] / 1e12:.3g} TFLOPs; a batch of average size "
        f"{batch['full_flops'] / 1e12:.3g} ({plan['full_flops'] / 2e12:.3g} TMACs in all)",
        f"smallest rho: {plan['smallest_rho']:.3f}; with kept activations, in "
        f"{plan['skipping_epochs']} epochs: {plan['skipping_smallest_rho']:.3f}",
    ]
    if plan["completions_only_rho"]:
        share = plan["completions_only_rho"]
        lines.append(f"every tensor, gradient through completions only: rho {share:.3f}")
    if plan["uncounted"]:
        lines.append(f"operations without a formula, counted as 0: {', '.join(plan['uncounted'])}")
    return lines


def table(plan: Plan) -> Table:
    """What each rho buys."""
    shown = Table(
        title="what rho buys",
        title_justify="left",
        caption=f"blocks reached, and share of the model trained; kept: with activations kept in "
        f"{plan['skipping_epochs']} epochs. GB: of memory, at the peak of a step",
        caption_justify="left",
    )
    for name in columns(plan):
        shown.add_column(name, justify="right")
    for line in body(plan):
        shown.add_row(*line)
    return shown


def columns(plan: Plan) -> list[str]:
    """Headings."""
    timed = ["s / batch", "hours", "kWh (est.)", "gCO2 (est.)"] if plan["clock"] else []
    return [
        "rho", "TFLOPs", "blocks", "trained", "blocks, kept", "trained, kept", "GB", "weights", "gradients", "optimizer", "activations", *timed,
    ]  # fmt: skip


def body(plan: Plan) -> list[list[str]]:
    """A line for each rho."""
    return [_line(row, plan) for row in plan["rows"]]


def _line(row: Mapping[str, Any], plan: Plan) -> list[str]:
    memory = row["memory"]
    about = "" if row["memory_simulated"] else "~"
    cells = [
        f"{row['rho']:g}",
        f"{row['flops'] / 1e12:.3g}",
        f"{row['depth']}/{plan['blocks']}" if row["trained"] else "-",
        f"{row['trained']:.0%}" if row["trained"] else "too little",
        f"{row['skipping_depth']}/{plan['blocks']}" if row["skipping_trained"] else "-",
        f"{row['skipping_trained']:.0%}" if row["skipping_trained"] else "too little",
        f"{about}{row['memory_total'] / 1e9:.2f}",
        *(f"{memory[key] / 1e9:.2f}" for key in ("weights", "gradients", "optimizer")),
        f"{about}{memory['activations'] / 1e9:.2f}",
    ]
    timed = ("seconds", "hours", "kwh", "co2_grams")
    if plan["clock"]:
        cells += [f"{row[key]:.3g}" if row[key] is not None else "-" for key in timed]
    return cells


def profile(plan: Plan) -> list[tuple[str, float, float]]:
    """For each block, loss to input, the TFLOPs of its weights' gradients and of passing through.

    What lies outside of the blocks is under the name of its tensor.
    """
    weights: dict[str, float] = defaultdict(float)
    deepest: dict[str, float] = {}
    for row in plan["profile"]:
        place = row["tensor"] if row["block"] is None else f"block {row['block']}"
        weights[place] += row["t_dw"] / 1e12
        deepest[place] = max(deepest.get(place, 0.0), row["t_dy"] / 1e12)
    shown, before = [], 0.0
    for place, flops in weights.items():
        passed = max(0.0, deepest[place] - before)
        before = max(before, deepest[place])
        if flops or passed:
            shown.append((place, flops, passed))
    return shown


def picture(plan: Plan) -> str:
    """The cost profile as SVG: what training each block adds, from the loss to the input."""
    rows = profile(plan)
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    ax = figure.subplots()
    places = range(len(rows))
    ax.bar(places, [w for _, w, _ in rows], color=WEIGHT, label="gradients of weights (t_dw)")
    ax.bar(
        places, [p for *_, p in rows], bottom=[w for _, w, _ in rows], color=PASS,
        edgecolor=WEIGHT, hatch="///", lw=0.4, label="passing gradients on (t_dy)",
    )  # fmt: skip
    ax.set(ylabel="TFLOPs a batch", xlabel="loss to input")
    step = -(-len(rows) // 16)
    ax.set_xticks(list(places)[::step])
    labels = ax.set_xticklabels([name for name, *_ in rows][::step], rotation=40, ha="right")
    for label in labels:
        label.set(parse_math=False, fontsize=7)
    ax.legend(fontsize=8, frameon=False)
    ax.spines[["top", "right"]].set_visible(False)
    ax.set_title(f"{plan['kind']}: what training each part costs", fontsize=9, loc="left",
                 parse_math=False)  # fmt: skip
    return plots.svg(figure, f"{plan['kind']} profile")


def write(plan: Plan, path: Path) -> None:
    """Write the picture (`.svg`), or the page with all tables (`.html`).

    Raises ValueError for another ending.
    """
    if path.suffix not in (".svg", ".html"):
        raise ValueError(f"{path} ends in neither .svg nor .html: name it so")
    drawn = picture(plan)
    if path.suffix == ".html":
        loader = Environment(loader=PackageLoader("greentrainer.report"), autoescape=True)
        drawn = loader.get_template("plan.html.j2").render(
            plan=plan, head=head(plan), columns=columns(plan), body=body(plan), picture=drawn
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(drawn, encoding="utf-8")
