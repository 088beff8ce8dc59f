"""The bill as a table: what a run spent beside what full fine-tuning would have."""

from collections.abc import Mapping
from typing import Any

from rich.table import Table

QUALITY = (
    ("held-out loss per token", "loss", 4),
    ("ROUGE-L", "rougeL", 2),
    ("exact match", "exact_match", 2),
    ("accuracy among choices", "accuracy_likelihood", 2),
)
"""Rows of the table where a run has them: label, key of the figure, decimals."""


SECONDS = ("train_seconds", "probe_seconds", "select_seconds", "trace_seconds")


def spent_seconds(bill: Mapping[str, Any]) -> float:
    """All that training took, of several processes each: batches, probes, selections, tracing."""
    return float(sum(bill[key] for key in SECONDS) / bill.get("processes", 1))


def bill_table(summary: dict[str, Any]) -> Table:
    """What was spent beside what full fine-tuning would have, and the quality before and after."""
    bill, full = summary["bill"], summary.get("full_fine_tuning")
    budget = _budget(bill)
    table = Table(title=f"the bill of {bill['method']}{budget}", title_justify="left")
    for column in ("", bill["method"], "full fine-tuning", "share"):
        table.add_column(column, justify="left" if not column else "right")
    remarks = []
    spent, reference = bill["spent_flops"], _reference(bill)
    table.add_row("FLOPs", _tera(spent), _tera(reference), f"{spent / reference:.1%}")
    table.add_row("  of them probes", _tera(bill["probe_flops"]), "-", f"{bill['probe_share']:.1%}")
    if bill.get("within_flops"):
        within = bill["within_flops"]
        table.add_row("  of them generating", _tera(within), _tera(within), "100.0%")
    if bill["skipped_flops"]:
        spared = bill["skipped_flops"]
        table.add_row("  spared: kept activations", _tera(spared), "-", f"{spared / reference:.1%}")
    if bill.get("unread_tokens"):
        read = bill["tokens"] - bill["unread_tokens"]
        table.add_row("tokens read", str(read), str(bill["tokens"]), f"{read / bill['tokens']:.1%}")
    if bill.get("ending"):
        made, asked = bill["steps"], bill["steps_asked"]
        table.add_row("steps", str(made), str(asked), f"{made / asked:.1%}")
        remarks.append(f"ended: {bill['ending']}")
    if bill.get("verified_batches"):
        remarks.append(f"verified: {verified(bill)}")
    if bill.get("exchanged_bytes") and bill["full_exchanged_bytes"]:
        sent, whole = bill["exchanged_bytes"], bill["full_exchanged_bytes"]
        megabytes = (f"{one / 1e6:.2f}" for one in (sent, whole))
        table.add_row("gradients exchanged, MB", *megabytes, f"{sent / whole:.1%}")
    if bill.get("gathered_bytes"):
        table.add_row("weights gathered, MB", f"{bill['gathered_bytes'] / 1e6:.2f}", "-", "-")
    if bill.get("processes", 1) > 1:
        remarks.append(f"{bill['processes']} processes together, seconds and memory of each")
    if bill.get("memory"):
        remarks.append(_memory(bill))
    seconds = spent_seconds(bill)
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
    elif bill.get("full_seconds_by_clock"):
        told = bill["full_seconds_by_clock"]
        share = f"{seconds / told:.1%}"
        table.add_row("seconds (full: by the clock)", f"{seconds:.0f}", f"{told:.0f}", share)
    for row in energy_rows(bill, full):
        table.add_row(*row)
    table.add_section()
    table.add_row("", "before", "after", "")
    before, after = summary["before"], summary.get("after")
    for label, key, digits in QUALITY:
        if key in before:
            later = f"{after[key]:.{digits}f}" if after else "interrupted"
            table.add_row(label, f"{before[key]:.{digits}f}", later, "")
    table.caption, table.caption_justify = "\n".join(remarks), "left"
    return table


def _memory(bill: Mapping[str, Any]) -> str:
    """How a limit of memory was kept to."""
    way, peak = bill["memory"], bill["peak_memory_bytes"]
    limit = f" of {way['limit'] / 1e9:.2f}" if way["limit"] else ""
    found = [f"memory: {peak / 1e9:.2f}{limit} GB"]
    if way["updates"] == "backward":
        found.append("updates in the backward pass")
    if way.get("rows"):
        found.append(f"{way['rows']} rows at a time")
    if way.get("recompute"):
        found.append("activations made again")
    if way["tail"] is not None:
        found.append(f"a tail of {way['tail']}")
    if way.get("adapters"):
        found.append(f"adapters of rank {way['adapters']} on all linear layers")
    if way["names"] is not None:
        found.append(f"{len(way['names'])} tensors may be trained")
    return ", ".join(found)


def verified(bill: Mapping[str, Any]) -> str:
    """How many steps were counted while they ran, and how far off the books were."""
    count, worst = bill["verified_batches"], bill["worst_deviation"]
    steps = "1 step" if count == 1 else f"{count} steps"
    return f"{steps} counted, worst deviation {worst:.1%}"


def _budget(bill: dict[str, Any]) -> str:
    """What the run was told to spend, if not all of full fine-tuning."""
    unit, amount = bill["budget"]["unit"], bill["budget"]["amount"]
    if unit == "rho":
        return f" at rho {amount:g}" if amount < 1 else ""
    return f" within {unit} {amount:g} (rho {bill['rho']:.3f})"


def energy_rows(
    bill: Mapping[str, Any], full: Mapping[str, Any] | None
) -> list[tuple[str, str, str, str]]:
    """Energy and CO2: of the run, of full fine-tuning at the run's power, and the share.

    full: figures of full fine-tuning, of which `estimated_seconds` is read.
    """
    measured, source = bill["energy_measured"], bill["energy_source"]
    rate = f"{bill['carbon_intensity']:g} g/kWh"
    rows = (
        (f"energy, Wh ({source})", 1000 * bill["energy_kwh"]),
        (f"CO2, g ({rate})" if measured else f"CO2, g (estimate, {rate})", bill["co2_grams"]),
    )
    if not full:
        return [(label, f"{value:.3g}", "-", "") for label, value in rows]
    times = full["estimated_seconds"] / bill["wall_seconds"]
    return [
        (label, f"{value:.3g}", f"{value * times:.3g} (estimate)", f"{1 / times:.1%}")
        for label, value in rows
    ]


def _reference(bill: dict[str, Any]) -> float:
    """Full fine-tuning of the bare model on the run's data, or on what an interrupted run saw."""
    return float(bill["full_flops" if bill["interrupted"] else "plain_full_flops"])


def _tera(flops: float) -> str:
    return f"{flops / 1e12:.2f} T"
