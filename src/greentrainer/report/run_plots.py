"""The pictures of one run."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from greentrainer.report.account import flops, thinned
from greentrainer.report.masks import grid
from greentrainer.report.theme import FIRST, INK, SECOND, THIRD, drawing, plain
from greentrainer.types import way_of

Row = Mapping[str, Any]
MOST_POINTS = 1500
"""Of the loss curve; more are drawn as means of so many stretches."""
MOST_KINDS = 60
"""Rows of a map."""
MAP = "cividis"


def loss_curve(
    steps: Sequence[Row],
    evaluations: Sequence[Row],
    chosen_at: Sequence[float],
    held_out: Mapping[int, float],
) -> Figure:
    """Training loss by step, losses of evaluations, and the test's before and after.

    held_out: step -> loss.  chosen_at: steps before which tensors were chosen.
    """
    figure = drawing(9, 3.4)
    ax = figure.subplots()
    for step in thinned(chosen_at, 40):
        ax.axvline(step + 0.5, color=INK, lw=1.0, ls=(0, (1, 2)), alpha=0.7)
    where, loss = _means([row["step"] for row in steps], [row["loss"] for row in steps])
    marker = "." if len(where) < 60 else ""
    ax.plot(where, loss, color=FIRST, lw=1.3, marker=marker, label="training, each step")
    if evaluations:
        ax.plot(
            [row["step"] for row in evaluations], [row["eval_loss"] for row in evaluations],
            color=SECOND, lw=1.1, ls="--", marker="s", ms=4, label="evaluation during training",
        )  # fmt: skip
    if held_out:
        ax.plot(list(held_out), list(held_out.values()), color=THIRD, ls="", marker="D", ms=6,
                label="held out, before and after" if len(held_out) > 1 else "held out, before",
        )  # fmt: skip
    ax.set(xlabel="optimizer step", ylabel="loss per token")
    ax.xaxis.set_major_locator(mpl.ticker.MaxNLocator(integer=True))
    plain(ax)
    ax.grid(visible=False, axis="x")
    ax.legend()
    return figure


def _means(where: Sequence[float], values: Sequence[float]) -> tuple[list[float], list[float]]:
    """Means over at most `MOST_POINTS` stretches."""
    size = math.ceil(len(values) / MOST_POINTS)
    starts = range(0, len(values), size or 1)
    parts = [slice(start, start + size) for start in starts]
    return (
        [sum(where[p]) / len(where[p]) for p in parts],
        [sum(values[p]) / len(values[p]) for p in parts],
    )


def maps(
    tensors: Sequence[Row], panels: Mapping[str, Sequence[float]], label: str | None, shares: bool
) -> Figure:
    """Small multiples: for each panel a value of each tensor, its kind down and its block across.

    shares: the values go from 0 to 1; otherwise from 0 to the greatest, on a square root scale.
    label: of the scale; none is drawn without.  nan: nothing is known of the tensor.
    """
    kinds = grid(tensors, [0.0] * len(tensors))[0][:MOST_KINDS]
    across = 1 if len(panels) == 1 else 2
    down = math.ceil(len(panels) / across)
    figure = drawing(9, down * (0.75 + 0.17 * len(kinds)))
    axes = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False)
    norm = _norm(panels, shares)
    image: Any = None
    for ax, (title, values) in zip(axes.flat, panels.items(), strict=False):
        cells = grid(tensors, values)[1][:MOST_KINDS]
        table = [[math.nan if cell is None else cell for cell in row] for row in cells]
        image = ax.imshow(table, aspect="auto", cmap=MAP, norm=norm, interpolation="none")
        ax.set_title(title, loc="left")
        ax.xaxis.set_major_locator(mpl.ticker.MaxNLocator(integer=True))
        ax.spines[:].set_alpha(0.3)
    for ax in list(axes.flat)[len(panels) :]:
        ax.set_visible(False)
    for ax in axes[:, 0]:
        ax.set_yticks(range(len(kinds)), labels=kinds, fontsize=7)
    for ax in axes[-1]:
        ax.set_xlabel("block (input to output)")
    if label is not None:
        _scale(figure, image, axes, label, shares)
    return figure


def _scale(figure: Figure, image: Any, axes: Any, label: str, shares: bool) -> None:
    bar = figure.colorbar(image, ax=axes, shrink=0.9, aspect=30)
    bar.set_label(label)
    bar.outline.set_alpha(0.3)
    if shares:
        bar.ax.yaxis.set_major_formatter(mpl.ticker.PercentFormatter(1, decimals=0))


def _norm(panels: Mapping[str, Sequence[float]], shares: bool) -> Any:
    if shares:
        return mpl.colors.Normalize(0, 1)
    known = [value for values in panels.values() for value in values if math.isfinite(value)]
    return mpl.colors.PowerNorm(0.5, 0, max([0.0, *known]) or 1.0, clip=True)


def tails(events: Sequence[Row], longest: int) -> Figure:
    """Positions that gradient passes through at each selection, and the share that this saves.

    events: dicts of number, tail and saves (a share of the batch's FLOPs in full).
    longest: stands for all positions.
    """
    figure = drawing(9, 2.6)
    left, right = figure.subplots(1, 2)
    numbers = [row["number"] for row in events]
    heights = [longest if row["tail"] is None else row["tail"] for row in events]
    left.bar(numbers, heights, color=FIRST, width=0.7)
    for row, height in zip(events, heights, strict=True):
        if len(events) <= 20:
            text = way_of(row)
            left.annotate(text, (row["number"], height), ha="center", va="bottom", fontsize=8)
    left.set(ylabel="prompt positions", ylim=(0, 1.15 * max([1, *heights])))
    right.bar(numbers, [row["saves"] for row in events], color=SECOND, width=0.7, hatch="///",
              edgecolor=INK, lw=0.4)  # fmt: skip
    right.set_ylabel("saved of a full batch")
    right.yaxis.set_major_formatter(mpl.ticker.PercentFormatter(1, decimals=0))
    for ax in (left, right):
        ax.set_xlabel("selection")
        ax.xaxis.set_major_locator(mpl.ticker.MaxNLocator(integer=True))
        plain(ax)
    return figure


def alternatives(events: Sequence[Row]) -> Figure:
    """Cost and worth of every alternative of some selections; the one that was taken is filled."""
    figure = drawing(9, 3.2)
    for ax, event in zip(
        figure.subplots(1, len(events), squeeze=False, sharey=True)[0], events, strict=True
    ):
        most = max(one["steps"] for one in event["alternatives"]) or 1.0
        for one in event["alternatives"]:
            ax.scatter(
                one["cost"], one["value"], s=30 + 120 * one["steps"] / most, marker="o",
                facecolor=FIRST if one["chosen"] else "none", edgecolor=INK, lw=0.8, zorder=3,
            )  # fmt: skip
            tail = way_of(one)
            ax.annotate(tail, (one["cost"], one["value"]), (0, 8), textcoords="offset points",
                        ha="center", fontsize=7)  # fmt: skip
        ax.set(xlabel="cost of a step", xlim=(0, 1.08))
        ax.set_title(f"selection {event['number']}", loc="left")
        ax.margins(y=0.2)
        plain(ax)
    figure.axes[0].set_ylabel("worth of a step")
    return figure


def cost_profile(places: Sequence[Row], kinds: Sequence[Row]) -> Figure:
    """FLOPs of a backward pass by place (`t_dw` and `t_dy` stacked) and by kind (`t_dw`)."""
    figure = drawing(9, max(3.4, 1.2 + 0.19 * min(len(kinds), MOST_KINDS)))
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    at = range(len(places))
    own, passed = [row["own"] for row in places], [row["passed"] for row in places]
    left.bar(at, own, color=FIRST, label="t_dw: gradients of the tensors")
    left.bar(at, passed, bottom=own, color=SECOND, hatch="///", edgecolor=INK, lw=0.2,
             label="t_dy: passing the gradient on")  # fmt: skip
    step = math.ceil(len(places) / 16)
    left.set_xticks(at[::step], labels=[row["place"] for row in places][::step], rotation=60,
                    ha="right", rotation_mode="anchor", fontsize=7)  # fmt: skip
    left.set_title("by place, output to input", loc="left")
    left.legend(loc="lower center", bbox_to_anchor=(0.5, 1.08), ncols=2)
    rows = list(kinds)[:MOST_KINDS]
    right.barh(range(len(rows)), [row["own"] for row in rows], color=FIRST)
    right.set_yticks(range(len(rows)), labels=[row["kind"] for row in rows], fontsize=7)
    right.invert_yaxis()
    right.set_title("t_dw by kind of tensor", loc="left")
    left.yaxis.set_major_formatter(lambda value, _: flops(value))
    right.xaxis.set_major_formatter(lambda value, _: flops(value))
    right.xaxis.set_major_locator(mpl.ticker.MaxNLocator(3))
    for ax in (left, right):
        plain(ax)
    return figure
