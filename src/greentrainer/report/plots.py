"""Pictures as SVG, by matplotlib: the same bytes for the same data.

Colours are told apart by colour-blind readers and in grey; every kind has a marker of its own too.
"""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from greentrainer.report.masks import Mask, grid

Row = Mapping[str, Any]

INK = "#1b1b1b"
FILL = "#1b7837"
STYLES = {
    "green": ("#1b7837", "o"),
    "full": ("#000000", "s"),
    "full_at_budget": ("#6e6e6e", "s"),
    "lora": ("#d55e00", "^"),
    "prefix": ("#cc79a7", "v"),
    "prompt": ("#cc79a7", "<"),
    "top2": ("#0072b2", "D"),
    "top_blocks": ("#56b4e9", "D"),
    "bitfit": ("#e69f00", "P"),
    "lisa": ("#e69f00", "X"),
}
CONTROL = ("#a6dba0", "o")
"""Green by another score than importance."""


def cost_quality(rows: Sequence[Row], zero_shot: float | None) -> Figure:
    """Held-out loss against shares of full fine-tuning's FLOPs and seconds."""
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for ax, key, what in zip(
        axes, ("flops / full", "seconds / full"), ("FLOPs", "seconds"), strict=True
    ):
        for number, row in enumerate(row for row in rows if key in row):
            colour, marker = _style(row)
            ax.errorbar(
                row[key], row["loss"], yerr=row["loss sd"] or 0, fmt=marker, color=colour,
                capsize=3, markersize=7, markeredgecolor=INK, markeredgewidth=0.5,
                label=row["label"], zorder=3,
            )  # fmt: skip
            place = (6, 6 if number % 2 else -12)
            ax.annotate(row["label"], (row[key], row["loss"]), place, textcoords="offset points",
                        fontsize=7, color=INK, parse_math=False)  # fmt: skip
        right = max([1.25, *(1.2 * row[key] for row in rows if key in row)])
        ax.set(xlabel=f"{what}, share of full fine-tuning", xlim=(0, right))
        ax.xaxis.set_major_formatter(mpl.ticker.PercentFormatter(1, decimals=0))
        ax.grid(alpha=0.25)
        ax.margins(y=0.12)
        ax.spines[["top", "right"]].set_visible(False)
    if zero_shot is not None:
        axes[0].set_title(f"before training: {zero_shot:.3f}", fontsize=9, loc="left")
    axes[0].set_ylabel("held-out loss per token")
    return figure


def _style(row: Row) -> tuple[str, str]:
    if row["method"] == "green" and row["metric"] not in ("first_order", "two_pass"):
        return CONTROL
    return STYLES.get(row["method"], (INK, "o"))


def frequency_map(
    tensors: Sequence[Mapping[str, Any]], shares: Sequence[float], title: str
) -> Figure:
    """How often each tensor was trained: its kind down, its block across."""
    kinds, cells = grid(tensors, shares)
    values = [[float("nan") if cell is None else cell for cell in row] for row in cells]
    figure = Figure(figsize=(8, 0.6 + 0.24 * len(kinds)), layout="constrained")
    ax = figure.subplots()
    image = ax.imshow(values, aspect="auto", cmap="cividis", vmin=0, vmax=1)
    ax.set(yticks=range(len(kinds)), yticklabels=kinds, xlabel="block (input to output)")
    ax.xaxis.set_major_locator(mpl.ticker.MaxNLocator(integer=True))
    ax.tick_params(labelsize=7)
    ax.set_title(title, fontsize=9, loc="left", parse_math=False)
    bar = figure.colorbar(image, ax=ax, shrink=0.9)
    bar.ax.yaxis.set_major_formatter(mpl.ticker.PercentFormatter(1, decimals=0))
    bar.set_label("of batches", fontsize=7)
    bar.ax.tick_params(labelsize=7)
    return figure


def mask_map(count: int, masks: Sequence[Mask], batches: int, title: str) -> Figure:
    """Which tensors were trained over the run: batches across, tensors down from the loss."""
    figure = Figure(figsize=(8, 2.6), layout="constrained")
    ax = figure.subplots()
    for mask in masks:
        spans = [(tensor - 0.5, 1) for tensor in sorted(mask.tensors)]
        for low, height in spans:
            ax.broken_barh([(mask.start, mask.batches)], (low, height), facecolors=FILL, lw=0)
    for mask in masks[1:]:
        ax.axvline(mask.start, color=INK, lw=0.5, ls=":")
    ax.set(xlim=(0, batches), ylim=(count, -1), xlabel="batch", ylabel="tensor, loss to input")
    ax.xaxis.set_major_locator(mpl.ticker.MaxNLocator(integer=True))
    ax.tick_params(labelsize=7)
    ax.set_title(title, fontsize=9, loc="left", parse_math=False)
    return figure


def svg(figure: Figure, salt: str, facecolor: str = "white") -> str:
    """The figure as an `<svg>` element.  salt: sets its inner names apart from other figures'."""
    settings = {"svg.hashsalt": salt, "svg.fonttype": "none", "font.family": "sans-serif"}
    with mpl.rc_context(settings), io.StringIO() as out:
        figure.savefig(out, format="svg", metadata={"Date": None}, facecolor=facecolor)
        text = out.getvalue()
    return text[text.index("<svg") :]
