"""Draws the tables and pictures of README and docs from `benchmarks/results`.

Run `python benchmarks draw`.  A table goes between the comments `<!-- table: NAME -->` and
`<!-- end -->`; a picture is an SVG in `docs/figures`.  With `--check` nothing is written, and the
exit code says whether all is current.
"""

import argparse
import re
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from shared.results import RESULTS, ROOT, load

from greentrainer.report.compare import choices, plot_of
from greentrainer.report.plots import svg
from greentrainer.report.tables import lines, markdown, spread

Row = dict[str, Any]

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FIGURES = ROOT / "docs" / "figures"


def rows_of(name: str) -> list[Row]:
    """The rows of one benchmark's file."""
    rows: list[Row] = load(name)["rows"]
    return rows


def engine_table() -> str:
    """Steps under the engine beside steps frozen by hand and full ones."""
    steps = [row for row in rows_of("engine") if row["what"] == "step"]
    head = ["rho", "step", "FLOPs / full", "seconds / full", "seconds / frozen by hand"]
    body = [
        [
            f"{row['rho']:g}",
            row["run"],
            f"{1.0 if row['run'] == 'full' else row['flops / full']:.3f}",
            f"{row['seconds / full']:.3f}",
            f"{row['seconds / by hand']:.3f}" if row["run"] == "engine" else "",
        ]
        for row in steps
    ]
    return markdown(head, body)


def quickstart_table() -> str:
    """The bill of the quickstart."""
    full, green, before, after, delta = rows_of("quickstart")
    memory = [f"{row['peak_memory_bytes'] / 1e9:.2f} GB" for row in (green, full)]
    flops = [f"{row['flops'] / 1e12:.1f} T" for row in (green, full)]
    body = [
        ["FLOPs", *flops, f"{green['flops / full']:.1%}"],
        ["time", "", "", f"{green['seconds / full']:.1%}"],
        ["peak memory", *memory, f"{green['memory / full']:.1%}"],
        ["held-out loss per token", _change(before, after, "loss"), "", ""],
        ["ROUGE-L", _change(before, after, "rougeL"), "", ""],
    ]
    if delta["bytes / full"] < 1:
        changed = f"{delta['bytes'] / 1e6:.0f} MB"
        body.append(["a checkpoint of what changed", changed, "", f"{delta['bytes / full']:.1%}"])
    return markdown(["", green["method"], "full fine-tuning", "share"], body)


def _change(before: Row, after: Row, key: str) -> str:
    return f"{before[key]:.4g} before, {after[key]:.4g} after"


def paper_flops_table() -> str:
    """Published PFLOPs beside ours, and beside what the paper's way of counting gives."""
    rows = [row for row in rows_of("paper_flops") if row["published"] is not None]
    head = [
        "model",
        "task",
        "method",
        "published",
        "ours",
        "deviation",
        "published rule",
        "deviation",
    ]
    body = [
        [
            row["model"],
            row["task"],
            row["method"] + (f" {row['rho']:g}" if row["rho"] else ""),
            f"{row['published']:g}",
            f"{row['ours']:.1f}",
            f"{row['deviation']:+.1%}",
            f"{row['published_rule']:.1f}",
            f"{row['published_rule_deviation']:+.1%}",
        ]
        for row in rows
    ]
    return markdown(head, body)


def comparison(name: str) -> str:
    """The rows of a comparison, and which of them is best at each budget."""
    results = load(name)
    head, body = lines(results["rows"])
    said = "\n".join(f"- {line}" for line in results["verdicts"])
    return f"{markdown(head, body)}\n\n{said}"


def comparison_pictures(name: str) -> None:
    """Cost against quality, and what green chose at rho 0.5."""
    results = load(name)
    (FIGURES / f"{name}.svg").write_text(plot_of(results), encoding="utf-8")
    chosen = next(one for one in choices(results) if one.label == "green, rho 0.5")
    for kind, picture in (("frequency", chosen.frequency_map), ("masks", chosen.mask_map)):
        (FIGURES / f"{name}-{kind}.svg").write_text(picture, encoding="utf-8")


def floor_table() -> str:
    """What each row of `benchmarks/quality/floor.py` cost, and its loss."""
    head = ["", "learning rate", "held-out loss", "FLOPs / full", "seconds / full",
            "median step / full", "memory / full", "skipped / full", "choosing"]  # fmt: skip
    body = []
    for row in rows_of("floor"):
        if "loss" not in row:
            body.append([row["label"], "; ".join(row.get("failures", ["not run yet"]))])
            continue
        shares = ("flops / full", "seconds / full", "median step / full", "memory / full",
                  "skipped flops / full")  # fmt: skip
        choosing = row["probe and selection / seconds"] + row["tracing / seconds"]
        body.append(
            [
                row["label"],
                f"{row['learning_rate']:g}",
                f"{row['loss']:.3f}",
                *(f"{row[key]:.1%}" if key in row else "" for key in shares),
                f"{choosing:.1%}" if row["method"] == "green" else "",
            ]
        )
    return markdown(head, [line + [""] * (len(head) - len(line)) for line in body])


def floor_picture() -> None:
    """Held-out loss against FLOPs: with shortened forward passes and without."""
    from matplotlib.figure import Figure

    rows = [row for row in rows_of("floor") if "loss" in row]
    figure = Figure(figsize=(7, 3.8), layout="constrained")
    axes = figure.subplots()
    curves = (
        ("green, rho", "green", "#a6dba0"),
        ("green, head", "green, head and kept", "#1b7837"),
    )
    for start, label, colour in curves:
        curve = [row for row in rows if row["label"].startswith(start)]
        x, y = ([row[key] for row in curve] for key in ("flops / full", "loss"))
        axes.plot(x, y, "o-", color=colour, markeredgecolor="#1b1b1b", label=label)
        for row in curve:
            axes.annotate(f"{row['rho']:g}", (row["flops / full"], row["loss"]), (4, 5),
                          textcoords="offset points", fontsize=7)  # fmt: skip
    others = [row for row in rows if row["method"] != "green"]
    for row, mark in zip(others, ("s", "D", "^"), strict=False):
        axes.plot(row["flops / full"], row["loss"], mark, color="#6e6e6e", label=row["label"],
                  markeredgecolor="#1b1b1b")  # fmt: skip
    axes.set(xlabel="FLOPs, share of full fine-tuning", ylabel="held-out loss per token",
             xlim=(0, 1.1))  # fmt: skip
    axes.legend(frameon=False, fontsize=7)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    (FIGURES / "floor.svg").write_text(svg(figure, "floor"), encoding="utf-8")


def quality_table(part: str) -> str:
    """The rows of one comparison of `benchmarks/quality/quality.py`."""
    head = ["", "learning rate", "held-out loss", "loss / full's", "FLOPs / full",
            "positions", "seeds"]  # fmt: skip
    body = [
        [
            row["label"],
            f"{row['learning_rate']:g}",
            spread(row, "loss", 3),
            f"{row['loss / full']:.4f}",
            f"{row['flops / full']:.1%}",
            f"{row['tail tokens / tokens']:.0%}",
            str(len(row["seeds"])),
        ]
        for row in rows_of("quality")
        if row["part"] == part and "loss" in row
    ]
    return markdown(head, body)


def frontier_table() -> str:
    """What each budget bought, and what was chosen for it."""
    head = ["", "", "learning rate", "held-out loss", "loss / full's", "FLOPs / full",
            "steps made", "tail", "seeds"]  # fmt: skip
    body = [
        [
            FRONTIERS[row["part"]],
            row["label"],
            f"{row['learning_rate']:g}",
            spread(row, "loss", 3),
            f"{row['loss / full']:.4f}",
            f"{row['flops / full']:.1%}",
            f"{row['steps / asked']:.0%}",
            "all" if row["tail"] is None else str(row["tail"]),
            str(len(row["seeds"])),
        ]
        for row in rows_of("frontier")
        if "loss" in row
    ]
    return markdown(head, body)


FRONTIERS = {
    "frontier_webquestions": "WebQuestions",
    "frontier_scitldr": "SciTLDR",
    "frontier_dialogsum": "DialogSum",
    "frontier_passes": "SciTLDR, three passes",
    "frontier_prompts": "SciTLDR, prompts in part",
}


def ranking_table() -> str:
    """Ways to train a step: what they were said to come to, and what they came to."""
    names = {"ranking_webquestions": "WebQuestions", "ranking_dialogsum": "DialogSum"}
    head = ["", "positions", "cost", "worth", "progress", "steps made", "held-out loss"]
    body = [
        [
            names[row["part"]],
            row["label"],
            f"{row['cost']:.2f}",
            f"{row['worth']:.2f}",
            f"{row['progress']:.1f}",
            f"{row['steps / asked']:.0%}",
            f"{row['loss']:.3f}",
        ]
        for row in sorted(rows_of("ranking"), key=lambda row: (row["part"], row["loss"]))
    ]
    return markdown(head, body)


def frontier_picture() -> None:
    """Held-out loss against FLOPs on each task: green, full fine-tuning, and that stopped early."""
    kinds = (
        ("green", "o-", "#1b7837"),
        ("full stopped early", "s--", "#6e6e6e"),
        ("full", "D", "#1b1b1b"),
    )
    _losses("frontier", FRONTIERS, kinds, fontsize=8)


TITLES = {
    "quality": "SciTLDR, one epoch",
    "quality_dialogsum": "DialogSum, one epoch",
}


def quality_picture() -> None:
    """Held-out loss against FLOPs, a panel for each comparison of `quality.py`."""
    kinds = (
        ("green, positions", "o", "#1b7837"),
        ("green, tensors only", "v", "#a6dba0"),
        ("full stopped early", "s", "#6e6e6e"),
        ("full", "D", "#1b1b1b"),
        ("LoRA", "^", "#762a83"),
    )
    _losses("quality", TITLES, kinds, fontsize=7)


Kinds = tuple[tuple[str, str, str], ...]
"""What a label starts with, its mark and its colour."""


def _losses(name: str, titles: dict[str, str], kinds: "Kinds", fontsize: int) -> None:
    """Held-out loss against FLOPs, a panel for each part of a comparison; kinds: label's start."""
    from matplotlib.figure import Figure

    rows = [row for row in rows_of(name) if "loss" in row]
    parts = list(dict.fromkeys(row["part"] for row in rows))
    figure = Figure(figsize=(10, 3.4), layout="constrained")
    for axes, part in zip(figure.subplots(1, len(parts), squeeze=False)[0], parts, strict=True):
        left = [row for row in rows if row["part"] == part]
        for start, mark, colour in kinds:
            mine = [row for row in left if row["label"].startswith(start)]
            left = [row for row in left if row not in mine]
            x, y = ([row[key] for row in mine] for key in ("flops / full", "loss"))
            if mine:
                axes.plot(x, y, mark, color=colour, label=start, markeredgecolor="#1b1b1b")
        axes.set(title=titles[part], xlabel="FLOPs / full fine-tuning's", xlim=(0, 1.08))
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("held-out loss per token")
    figure.axes[0].legend(frameon=False, fontsize=fontsize)
    (FIGURES / f"{name}.svg").write_text(svg(figure, name), encoding="utf-8")


def plan_table() -> str:
    """Predicted over measured: seconds a step and memory, for each rho."""
    head = [
        "rho", "seconds: told / measured", "planned / measured", "GB told", "GB measured",
        "told / measured", "GB measured, glibc as it comes", "told / measured",
    ]  # fmt: skip
    keys = (
        "told / measured seconds", "planned / measured seconds", "told GB", "measured GB",
        "told / measured memory", "measured GB, glibc as it comes", "the same, told / measured",
    )  # fmt: skip
    body = [[f"{row['rho']:g}", *(f"{row[key]:.3f}" for key in keys)] for row in rows_of("plan")]
    return markdown(head, body)


def scale_table() -> str:
    """What is sent beside what is computed, for the models and processes simulated."""
    head = ["model", "processes", "", "rho", "GB sent", "GB held", "passes, s", "sending, s",
            "a step, s"]  # fmt: skip
    body = [
        [
            row["model"],
            str(row["processes"]),
            row["parallel"],
            f"{row['rho']:g}",
            f"{row['sent_gigabytes']:.2f}",
            f"{row['memory_gigabytes']:.1f}",
            f"{row['passes_seconds']:.3f}",
            f"{row['sending_seconds']:.3f}",
            f"{row['least_seconds']:.3f} to {row['most_seconds']:.3f}",
        ]
        for row in rows_of("scale")
    ]
    return markdown(head, body)


def gpu_table() -> str:
    """Steps on a GPU: what each method takes of full fine-tuning's FLOPs, seconds and memory."""
    head = [
        "model", "method", "FLOPs / full", "seconds / full", "memory / full", "s a step",
        "lowest", "highest",
    ]  # fmt: skip
    shares = ("flops / full", "seconds / full", "memory / full")
    body = [
        [
            f"{row['model']}, {row['precision']}",
            _gpu_method(row),
            *(f"{row[key]:.3f}" for key in shares),
            *(f"{row[key]:.4f}" for key in ("seconds", "low", "high")),
        ]
        for row in rows_of("gpu_steps")
        if row["what"] == "step" and "seconds" in row
    ]
    return markdown(head, body)


def _gpu_method(row: Row) -> str:
    if row["rho"] is not None:
        return f"{row['method']}, rho {row['rho']:g}"
    return row["method"] if row["tail"] is None else f"all tensors, tail {row['tail']}"


def whole_runs_table() -> str:
    """Runs from the command to the checkpoint, and what became of a budget in hours."""
    head = ["", "wall / full", "getting ready, s", "steps", "loss / full", "seconds / given"]
    body = [
        [
            row["run"],
            f"{row['wall / full']:.2f}",
            f"{row['ready']:.1f}",
            row["steps"],
            f"{row['loss / full']:.3f}",
            f"{row['seconds / given']:.2f}" if "times" in row else "",
        ]
        for row in rows_of("whole_runs")
    ]
    return markdown(head, body)


def memory_table() -> str:
    """Runs within a limit of memory, and how they kept to it."""
    head = [
        "", "limit, GB", "told", "peak", "peak / full", "process", "updates", "rows at a time",
        "tail", "may be trained", "loss",
    ]  # fmt: skip
    body = [
        [
            row["run"],
            *("" if row[key] is None else f"{row[key] / 1e9:.2f}" for key in ("limit", "told")),
            f"{row['peak'] / 1e9:.2f}",
            f"{row['peak / full']:.2f}",
            f"{row['whole process'] / 1e9:.2f}" if "whole process" in row else "",
            row["updates"],
            str(row.get("rows") or "all"),
            "all" if row["tail"] is None else str(row["tail"]),
            f"adapters of {row['adapters']}"
            if row.get("adapters")
            else f"{row['tensors']} tensors",
            f"{row['loss']:.3f}",
        ]
        for row in rows_of("memory")
    ]
    return markdown(head, body)


ENDS = ("newest", "lowest")


def tried_table(group: str) -> str:
    """What held with the newest versions and with the lowest allowed, of one group."""
    found: dict[str, dict[str, dict[str, bool]]] = {}
    columns: list[str] = []
    for end in ENDS:
        for row in rows_of(f"tried_{end}"):
            if row["group"] == group:
                columns += [] if row["column"] in columns else [row["column"]]
                cell = found.setdefault(row["what"], {}).setdefault(row["column"], {})
                cell[end] = not row["failed"] and row["passed"] > 0
    body = [
        [what, *(_held(cells.get(column, {})) for column in columns)]
        for what, cells in found.items()
    ]
    return markdown(["", *columns], body)


def _held(cell: dict[str, bool]) -> str:
    """Both ends, one of them, or neither."""
    if not cell:
        return ""
    held = [end for end in ENDS if cell.get(end)]
    return "yes" if len(held) == len(ENDS) else " ".join(held) or "no"


def versions_table() -> str:
    """The versions at both ends."""
    ends = [load(f"tried_{end}")["versions"] for end in ENDS]
    names = list(dict.fromkeys(name for end in ends for name in end))
    return markdown(["", *ENDS], [[name, *(end.get(name, "") for end in ends)] for name in names])


def small_table(name: str, *columns: str) -> str:
    """Some columns of a benchmark's rows."""
    body = [[_plain(row.get(column)) for column in columns] for row in rows_of(name)]
    return markdown(columns, body)


def _plain(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str("" if value is None else value)


STUDIES = tuple(name for name in ("scitldr", "webquestions") if (RESULTS / f"{name}.json").exists())
TABLES: dict[str, Callable[[], str]] = {
    "engine": engine_table,
    "quickstart": quickstart_table,
    "paper_flops": paper_flops_table,
    "floor": floor_table,
    "quality": partial(quality_table, "quality"),
    "quality_dialogsum": partial(quality_table, "quality_dialogsum"),
    "frontier": frontier_table,
    "ranking": ranking_table,
    "positions_memory": partial(
        small_table, "positions_memory", "what", "bytes / full", "positions / full"
    ),
    "plan": plan_table,
    "gpu_steps": gpu_table,
    "scale": scale_table,
    "whole_runs": whole_runs_table,
    "memory": memory_table,
    "tried_trainers": partial(tried_table, "trainers"),
    "tried_families": partial(tried_table, "families"),
    "tried_few_bits": partial(tried_table, "few bits"),
    "tried_versions": versions_table,
    **{name: partial(comparison, name) for name in STUDIES},
}


def filled(text: str) -> str:
    """The text with each table redrawn."""

    def table(match: re.Match[str]) -> str:
        return f"<!-- table: {match[1]} -->\n{TABLES[match[1]]()}\n<!-- end -->"

    return re.sub(r"<!-- table: (\w+) -->.*?<!-- end -->", table, text, flags=re.DOTALL)


def quickstart_picture() -> None:
    """Bars: what green spent as a share of full fine-tuning, and held-out loss before and after."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams |= {"svg.hashsalt": "greentrainer", "font.size": 10, "svg.fonttype": "none"}
    from matplotlib import pyplot as plt

    _, green, before, after, _ = rows_of("quickstart")
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 2.6), width_ratios=(3, 2))
    labels = ["FLOPs", "seconds", "peak memory"]
    shares = [green[f"{key} / full"] for key in ("flops", "seconds", "memory")]
    left.barh(labels, [1] * 3, color="#d9d9d9", label="full fine-tuning")
    bars = left.barh(labels, shares, color="#1b7837", height=0.5, label=green["method"])
    left.bar_label(bars, [f"{share:.0%}" for share in shares], padding=4)
    left.invert_yaxis()
    left.set(xlim=(0, 1.02), xticks=[0, 0.5, 1], xticklabels=["0", "50%", "100%"], title="spent")
    left.legend(loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=2, frameon=False)
    bars = right.bar(["before", "after"], [before["loss"], after["loss"]], width=0.5,
                     color=["#d9d9d9", "#1b7837"])  # fmt: skip
    right.bar_label(bars, fmt="%.2f", padding=2)
    right.set(title="held-out loss per token", ylim=(0, 1.2 * before["loss"]), yticks=[])
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    FIGURES.mkdir(parents=True, exist_ok=True)
    figure.savefig(FIGURES / "quickstart.svg", metadata={"Date": None}, facecolor="white")


def main() -> None:
    """Redraw, or check."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="say by the exit code what is current")
    parser.add_argument("--tables", action="store_true", help="only tables")
    parser.add_argument("--figures", action="store_true", help="only pictures")
    asked = parser.parse_args()
    try:
        texts = {page: page.read_text(encoding="utf-8") for page in PAGES}
        new = {page: filled(text) for page, text in texts.items()}
        if asked.check:
            sys.exit(new != texts)
        if not asked.figures:
            for page, text in new.items():
                page.write_text(text, encoding="utf-8")
        if not asked.tables:
            pictures()
    except ValueError as error:
        sys.exit(f"error: {error}")


def pictures() -> None:
    """Draw every picture."""
    quickstart_picture()
    floor_picture()
    quality_picture()
    frontier_picture()
    for name in STUDIES:
        comparison_pictures(name)
