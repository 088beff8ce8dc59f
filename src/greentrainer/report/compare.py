"""A comparison as a table, a plot and a page, drawn from its results alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader
from rich.table import Table

from greentrainer.report import plots
from greentrainer.report.masks import frequency, masks
from greentrainer.report.tables import lines, markdown, remarks, terminal, unfinished

Results = Mapping[str, Any]
Record = Mapping[str, Any]


@dataclass(frozen=True)
class Written:
    """What was written.

    table: for a terminal.  unfinished: rows without a result, and why.  remarks: on the figures.
    """

    table: Table
    unfinished: list[str]
    remarks: list[str]
    page: Path


@dataclass(frozen=True)
class Choice:
    """How one row chose.  frequency_map, mask_map: SVG; table: the most trained tensors."""

    label: str
    frequency_map: str
    mask_map: str
    table: list[tuple[str, str]]


def write(results: Results, folder: Path) -> Written:
    """Write `table.md`, `plot.svg` and `report.html` into the folder."""
    head, body = lines(results["rows"])
    remarked = remarks(results["records"])
    said = "\n".join(f"- {line}" for line in [*results["verdicts"], *remarked])
    text = f"{markdown(head, body)}\n\n{said}\n"
    plot = plot_of(results)
    page = Environment(loader=PackageLoader("greentrainer.report"), autoescape=True).get_template(
        "compare.html.j2"
    )
    html = page.render(
        results=results,
        head=head,
        body=body,
        remarks=remarked,
        plot=plot,
        choices=choices(results),
        origins=origins(results["records"]),
    )
    for name, content in (("table.md", text), ("plot.svg", plot), ("report.html", html)):
        (folder / name).write_text(content, encoding="utf-8")
    rows = results["rows"]
    return Written(terminal(rows), unfinished(rows), remarked, folder / "report.html")


def plot_of(results: Results) -> str:
    """Cost against quality, as SVG."""
    rows = [row for row in results["rows"] if "loss" in row]
    before = next((row["loss"] for row in rows if row["method"] == "zero_shot"), None)
    return plots.svg(plots.cost_quality(rows, before), results["name"])


def choices(results: Results) -> list[Choice]:
    """How the rows that choose tensors chose."""
    chosen = [row for row in results["rows"] if "loss" in row and row["method"] == "green"]
    return [choice(row["label"], records_of(results, row), results["layouts"]) for row in chosen]


def records_of(results: Results, row: Mapping[str, Any]) -> list[Record]:
    """The records behind a row."""
    return [
        record
        for record in results["records"]
        if record["label"] == row["label"]
        and record["status"] == "done"
        and record["config"]["learning_rate"] == row["learning_rate"]
    ]


def choice(label: str, records: Sequence[Record], layouts: Mapping[str, Any]) -> Choice:
    """Maps of one row: how often each tensor was trained, and when in its first run."""
    tensors = layouts[records[0]["layout"]]
    shares = frequency(records, len(tensors))
    first = records[0]
    over = f"{label}: how often each tensor was trained ({len(records)} runs)"
    when = f"{label}: what was trained when (seed {first['config']['seed']})"
    batches = first["bill"]["batches"]
    most = sorted(zip(shares, (t["name"] for t in tensors), strict=True), key=lambda p: -p[0])
    return Choice(
        label,
        plots.svg(plots.frequency_map(tensors, shares, over), f"{label} frequency"),
        plots.svg(plots.mask_map(len(tensors), masks(first), batches, when), f"{label} masks"),
        [(name, f"{share:.0%}") for share, name in most if share > 0],
    )


def origins(records: Sequence[Record]) -> list[dict[str, Any]]:
    """The different provenances of the records, without the time."""
    found: list[dict[str, Any]] = []
    for record in records:
        where = {k: v for k, v in record["provenance"].items() if k not in ("written", "seeds")}
        if where not in found:
            found.append(where)
    return found
