"""Rows of a comparison as the lines of a table."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

Row = Mapping[str, Any]

SCORES = {
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougeL": "ROUGE-L",
    "grounded": "grounded words",
    "exact_match": "exact match",
    "f1": "F1",
    "accuracy_likelihood": "accuracy, by likelihood",
    "accuracy_generation": "accuracy, by generation",
}
"""What a test may be scored by, in per cent, and its heading."""
TAIL = "tail tokens / tokens"
"""Share of positions that gradient may pass through."""
MAIN = ("rougeL", "exact_match", "accuracy_likelihood")
"""Of these the one that a narrow table shows."""


def lines(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Headings, and a line for each row; a row without a finished run says why."""
    scores = [key for key in SCORES if any(key in row for row in rows)]
    head = ["method", "learning rate", "loss", *(SCORES[key] for key in scores)]
    tails = any(row.get(TAIL, 1.0) < 1 for row in rows)
    head += ["positions"] if tails else []
    head += ["TFLOPs", "FLOPs / full", "seconds / full", "memory / full"]
    powered = any("energy_kwh" in row for row in rows)
    if powered:
        estimated = not all(row.get("energy_measured", True) for row in rows)
        head += [f"{what} (estimate)" if estimated else what for what in ("Wh", "gCO2")]
    head += ["choosing", "seeds"]
    return head, [_line(row, scores, tails, powered, len(head)) for row in rows]


def _line(row: Row, scores: Sequence[str], tails: bool, powered: bool, width: int) -> list[str]:
    if "loss" not in row:
        reason = "; ".join(row.get("failures", ["not run yet"]))
        return [row["label"], reason, *[""] * (width - 2)]
    return [
        row["label"],
        _rate(row),
        spread(row, "loss", 3),
        *(spread(row, key, 1) if key in row else "" for key in scores),
        *([_share(row, TAIL)] if tails else []),
        f"{row['flops'] / 1e12:.2f}" if "flops" in row else "0",
        *(_share(row, key) for key in ("flops / full", "seconds / full", "memory / full")),
        *(_energy(row) if powered else []),
        _choosing(row),
        _seeds(row),
    ]


def _rate(row: Row) -> str:
    """The learning rate, with a star if a better one may lie beyond those tried."""
    if "learning_rate" not in row:
        return ""
    return f"{row['learning_rate']:g}{'*' if row['at the edge of its grid'] else ''}"


def _seeds(row: Row) -> str:
    failed = len(row.get("seeds failed", ()))
    return f"{len(row['seeds'])}{f' ({failed} failed)' if failed else ''}"


def spread(row: Row, key: str, digits: int) -> str:
    """Mean, and standard deviation over seeds where there are several."""
    deviation = row[f"{key} sd"]
    mean = f"{row[key]:.{digits}f}"
    return mean if deviation is None else f"{mean} ± {deviation:.{digits}f}"


def _share(row: Row, key: str) -> str:
    return f"{row[key]:.1%}" if key in row else ""


def _energy(row: Row) -> list[str]:
    if "energy_kwh" not in row:
        return ["", ""]
    return [f"{1000 * row['energy_kwh']:.3g}", f"{row['co2_grams']:.3g}"]


def _choosing(row: Row) -> str:
    """Share of the seconds that probes, selections and tracing took."""
    if not row.get("probe and selection / seconds"):
        return ""
    return f"{row['probe and selection / seconds'] + row['tracing / seconds']:.1%}"


def markdown(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    table = [head, ["---"] * len(head), *body]
    return "\n".join(f"| {' | '.join(map(_escaped, line))} |" for line in table)


def terminal(rows: Sequence[Row]) -> Table:
    """The main columns, for a terminal."""
    scores = [key for key in MAIN if any(key in row for row in rows)][:1]
    shares = {"flops / full": "FLOPs", "seconds / full": "seconds", "memory / full": "memory"}
    table = Table("method")
    for heading in ("loss", *(SCORES[key] for key in scores), *shares.values()):
        table.add_column(heading, justify="right")
    for row in rows:
        if "loss" in row:
            figures = [spread(row, "loss", 3)]
            figures += [spread(row, key, 1) if key in row else "" for key in scores]
            figures += [_share(row, key) for key in shares]
            table.add_row(escape(row["label"]), *figures)
    return table


def unfinished(rows: Sequence[Row]) -> list[str]:
    """Rows without a result or with failed runs, and why."""
    return [
        f"{row['label']}: {'; '.join(row.get('failures', ['not run yet']))}"
        for row in rows
        if "loss" not in row or "failures" in row
    ]


def remarks(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """What to know of the figures: whether runs slowed each other down."""
    trained = [record for record in records if "bill" in record]
    beside = [record.get("side_by_side", 1) for record in trained]
    crowded = sum(one > 1 for one in beside)
    if not crowded:
        return []
    return [
        f"seconds and energy: {crowded} of {len(trained)} runs were made with up to {max(beside)} "
        "side by side, where each takes longer than alone"
    ]


def _escaped(cell: str) -> str:
    return cell.replace("|", "\\|").replace("\n", " ")
