"""A plan as tables for a terminal, and as a page with its picture, from its figures alone."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader
from rich.table import Table

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


@dataclass(frozen=True)
class Figures:
    """A table of a plan.  says: what its columns mean."""

    title: str
    columns: list[str]
    body: list[list[str]]
    says: str

    def terminal(self) -> Table:
        """For a terminal."""
        shown = Table(title=self.title, title_justify="left", caption=self.says)
        shown.caption_justify = "left"
        for name in self.columns:
            shown.add_column(name, justify="right")
        for line in self.body:
            shown.add_row(*line)
        return shown


def tables(plan: Plan) -> list[Figures]:
    """What each rho buys, the memory that it takes, and the time, where a clock was set."""
    rows, clock = plan["rows"], plan["clock"]
    found = [
        Figures(
            "what rho buys",
            ["rho", "TFLOPs", "blocks", "trained", "blocks, kept", "trained, kept"],
            [_bought(row, plan["blocks"]) for row in rows],
            "blocks reached from the loss, and share of the model trained; kept: with activations "
            f"kept in {plan['skipping_epochs']} epochs",
        ),
        Figures(
            "memory at the peak, GB",
            ["rho", "in all", "weights", "gradients", "AdamW's state", "activations", "a probe"],
            [_memory(row) for row in rows],
            "in all: weights, and a step's or a probe's, whichever is more; ~: activations are "
            "taken from between two simulated rows",
        ),
    ]
    if plan.get("room"):
        found.append(_room(plan["room"]))
    if plan.get("together"):
        found.append(_together(plan))
    if clock:
        timed = Figures(
            f"time on {clock['device']}",
            ["rho", "s / batch", "hours", "kWh (estimate)", "gCO2 (estimate)"],
            [_timed(row) for row in rows],
            f"energy: {plan['energy']}; the clock is off by {clock['deviation']:.0%} on the passes "
            "that it was set by",
        )
        found.append(timed)
    if plan["starts"]:
        found.append(begun(plan["starts"]))
    return [by_kind(plan), *found]


def _together(plan: Plan) -> Figures:
    """What several processes take."""
    body = [
        [
            f"{row['rho']:g}",
            row["parallel"],
            f"{row['memory'] / 1e9:.2f}",
            f"{row['sent'] / 1e9:.3g}",
            "-" if row["seconds"] is None else f"{row['seconds']:.3g}",
        ]
        for row in plan["together"]
    ]
    return Figures(
        f"{plan['processes']} processes together",
        ["rho", "parallel", "GB of each", "GB sent a step", "seconds of sending"],
        body,
        "memory at the peak of each process, and what each sends the others in an optimizer step; "
        "seconds where --bandwidth says how fast, hidden behind the passes as far as these last",
    )


def _room(rooms: Sequence[Mapping[str, Any]]) -> Figures:
    """What each size of memory buys."""
    updates = {"step": "in the step", "backward": "in the backward pass", None: "-"}
    body = [
        [
            f"{row['gigabytes']} GB",
            row.get("weights", "float32"),
            f"{row['trained']:.0%}" if row["trained"] else "-",
            updates[row["updates"]] + _aside(row),
            "-" if not row["trained"] else "all" if row["tail"] is None else str(row["tail"]),
        ]
        for row in rooms
    ]
    return Figures(
        "what memory buys (--memory)",
        ["memory", "weights", "may be trained", "updates", "positions"],
        body,
        "share of the model that may be trained, how tensors are updated, and through how many "
        "positions of each prompt gradient passes besides the completion",
    )


def _aside(row: Mapping[str, Any]) -> str:
    """What else is changed of a step."""
    rows = f", {row['rows']} rows at a time" if row.get("rows") else ""
    return rows + (", activations made again" if row.get("recompute") else "")


def _bought(row: Mapping[str, Any], blocks: int) -> list[str]:
    reached = [(row["depth"], row["trained"]), (row["skipping_depth"], row["skipping_trained"])]
    cells = [f"{row['rho']:g}", f"{row['flops'] / 1e12:.3g}"]
    for depth, trained in reached:
        cells += [f"{depth}/{blocks}", f"{trained:.0%}"] if trained else ["-", "-"]
    return cells


def _timed(row: Mapping[str, Any]) -> list[str]:
    told = (row[key] for key in ("seconds", "hours", "kwh", "co2_grams"))
    return [f"{row['rho']:g}", *("-" if value is None else f"{value:.3g}" for value in told)]


def begun(starts: Sequence[Mapping[str, Any]]) -> Figures:
    """Grams of CO2 by when the run begins."""
    shares = list(starts[0]["co2_grams"])
    lines = [
        [one["begin"], *(f"{one['co2_grams'][share]:.3g}" for share in shares)] for one in starts
    ]
    return Figures(
        "grams of CO2 by when the run begins (estimate)",
        ["begin", *(f"rho {share}" for share in shares)],
        lines,
        "as the carbon schedule says",
    )


def by_kind(plan: Plan) -> Figures:
    """What the gradients of each kind of tensor cost, over all blocks."""
    kinds: dict[str, list[int]] = {}
    for row in plan["profile"]:
        sums = kinds.setdefault(row["kind"], [0, 0, 0])
        for place, value in enumerate((1, row["elements"], row["t_dw"])):
            sums[place] += value
    backward = plan["batch"]["backward_flops"]
    lines = [
        [
            kind,
            f"{count}",
            f"{elements / 1e6:.2f} M",
            f"{flops / 1e12:.3g}",
            f"{flops / backward:.1%}",
        ]
        for kind, (count, elements, flops) in kinds.items()
        if flops
    ]
    rest = backward - sum(flops for *_, flops in kinds.values())
    lines.append(
        ["passing gradients on (t_dy)", "", "", f"{rest / 1e12:.3g}", f"{rest / backward:.1%}"]
    )
    return Figures(
        "cost profile of a batch's backward pass, loss to input",
        ["gradients of weights (t_dw)", "tensors", "elements", "TFLOPs", "share"],
        lines,
        "each tensor's by --json, and each block's in the picture",
    )


def _part(flops: int, of: int) -> tuple[str, str]:
    return f"{flops / 1e12:.3g}", f"{flops / of:.1%}"


def _memory(row: Mapping[str, Any]) -> list[str]:
    memory = row["memory"]
    about = "" if row["memory_simulated"] else "~"
    return [
        f"{row['rho']:g}",
        f"{about}{row['memory_total'] / 1e9:.2f}",
        *(f"{memory[key] / 1e9:.2f}" for key in ("weights", "gradients", "optimizer")),
        *(f"{about}{memory[key] / 1e9:.2f}" for key in ("activations", "probe")),
    ]


def profile(plan: Plan) -> list[tuple[str, float, float]]:
    """For each block, loss to input, the TFLOPs of its weights' gradients and of passing through.

    What lies outside of the blocks is under the name of its tensor.
    """
    weights: dict[str, float] = defaultdict(float)
    deepest: dict[str, float] = {}
    for row in plan["profile"]:
        outside = row["tensor"].removesuffix(".weight").rpartition(".")[2]
        place = outside if row["block"] is None else f"block {row['block']}"
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
    from matplotlib.figure import Figure  # not for tables alone

    from greentrainer.report import plots

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
    ax.legend(fontsize=8, frameon=False, ncols=2, loc="lower right", bbox_to_anchor=(1, 1))
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
            plan=plan, head=head(plan), tables=tables(plan), picture=drawn
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(drawn, encoding="utf-8")
