"""The bill as a table: what a run spent beside what full fine-tuning would have."""

from typing import Any

from rich.table import Table

QUALITY = (
    ("held-out loss per token", "loss", 4),
    ("ROUGE-L", "rougeL", 2),
    ("exact match", "exact_match", 2),
    ("accuracy among choices", "accuracy_likelihood", 2),
)
"""Rows of the table where a run has them: label, key of the figure, decimals."""


def bill_table(summary: dict[str, Any]) -> Table:
    """What was spent beside what full fine-tuning would have, and the quality before and after."""
    bill, full = summary["bill"], summary.get("full_fine_tuning")
    table = Table(title=f"the bill at rho {bill['rho']:g}", title_justify="left")
    for column in ("", "green", "full fine-tuning", "share"):
        table.add_column(column, justify="left" if not column else "right")
    spent, reference = bill["spent_flops"], bill["full_flops"]
    table.add_row("FLOPs", _tera(spent), _tera(reference), f"{bill['rho_spent']:.1%}")
    table.add_row("  of them probes", _tera(bill["probe_flops"]), "-", f"{bill['probe_share']:.1%}")
    seconds = bill["train_seconds"] + bill["probe_seconds"] + bill["select_seconds"]
    if full:
        table.add_row(
            f"seconds (full: from {full['batches']} batches)",
            f"{seconds:.0f}",
            f"{full['estimated_seconds']:.0f}",
            f"{seconds / full['estimated_seconds']:.1%}",
        )
        table.add_row(
            "peak memory, GB",
            f"{bill['peak_memory_bytes'] / 1e9:.2f}",
            f"{full['peak_memory_bytes'] / 1e9:.2f}",
            f"{bill['peak_memory_bytes'] / full['peak_memory_bytes']:.1%}",
        )
    table.add_section()
    table.add_row("", "before", "after", "")
    before, after = summary["before"], summary.get("after")
    for label, key, digits in QUALITY:
        if key in before:
            later = f"{after[key]:.{digits}f}" if after else "interrupted"
            table.add_row(label, f"{before[key]:.{digits}f}", later, "")
    return table


def _tera(flops: float) -> str:
    return f"{flops / 1e12:.2f} T"
