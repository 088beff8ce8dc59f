"""Pictures whose colours the page decides: dark, light or printed.

Colours of lines and text are placeholders in the figure, and CSS variables in the SVG.
"""

import re
import warnings
from contextlib import AbstractContextManager
from html import escape
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from greentrainer.report.plots import svg

INK, FIRST, SECOND, THIRD = "#0a0b01", "#0a0b02", "#0a0b03", "#0a0b04"
"""Text and axes; three colours that are told apart in any light."""
VARIABLES = {INK: "--ink", FIRST: "--first", SECOND: "--second", THIRD: "--third"}
SETTINGS = {
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.facecolor": "none",
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": INK,
    "hatch.color": INK,
    "legend.facecolor": "none",
    "legend.edgecolor": "none",
    "text.parse_math": False,
    "font.size": 9,
    "axes.titlesize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
}


def themed(figure: Figure, name: str) -> str:
    """The figure as an `<svg>` element that takes its colours from the page.

    name: what it shows, for those who cannot see it; sets its inner names apart too.
    """
    with style(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # the reader's own font may have it
        text = svg(figure, name, facecolor="none")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    return text.replace("<svg ", f'<svg role="img" aria-label="{escape(name)}" ', 1)


def style() -> AbstractContextManager[None]:
    """Figures made in here can be `themed`."""
    return mpl.rc_context(SETTINGS)


def drawing(width: float, height: float) -> Figure:
    """An empty figure, in inches."""
    return Figure(figsize=(width, height), layout="constrained")


def plain(axes: Any) -> None:
    """Without the frame's upper and right side."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    axes.grid(alpha=0.18)
