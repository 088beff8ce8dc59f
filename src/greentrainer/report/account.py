"""The bill of a run as lines of text: spent, full fine-tuning's, saved.

FLOPs are counted from the cost graph.  What was not measured is marked as an estimate.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from greentrainer.report.bill import spent_seconds
from greentrainer.report.record import RunRecord
from greentrainer.report.tables import SCORES

ESTIMATE = " (estimate)"
UNKNOWN = "not measured"
PREFIXES = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


@dataclass(frozen=True)
class Line:
    """One line of the bill."""

    what: str
    spent: str
    full: str = ""
    saved: str = ""


@dataclass(frozen=True)
class Account:
    """What a run spent, and plain full fine-tuning of the same data would have, or of what is done.

    spent_flops, full_flops: of training.  seconds: of batches, probes, selections and tracing.
    full_seconds: of full fine-tuning; measured: on some batches, not taken over from this run.
    peak_bytes, full_peak_bytes: 0 where not measured.
    tokens, unread_tokens: of training batches, and those of them that are not read.
    bill: as in `metrics.json`, empty before the end.
    """

    spent_flops: float
    full_flops: float
    probe_flops: float
    skipped_flops: float
    seconds: float
    full_seconds: float
    full_seconds_from: str
    peak_bytes: int
    full_peak_bytes: int
    tokens: int
    unread_tokens: int
    bill: Mapping[str, Any]

    @property
    def share(self) -> float | None:
        """Spent FLOPs of full fine-tuning's, None before the first batch."""
        return self.spent_flops / self.full_flops if self.full_flops else None


def account_of(record: RunRecord) -> Account:
    """From the bill where there is one, else from the books so far."""
    bill, full = record.metrics.get("bill", {}), record.metrics.get("full_fine_tuning", {})
    if bill:
        reference = bill["full_flops" if bill["interrupted"] else "plain_full_flops"]
        seconds, spent = spent_seconds(bill), bill["spent_flops"]
    else:
        reference, seconds = record.total("full_flops"), record.total("seconds")
        spent = record.total("forward_flops") + record.total("backward_flops")
    probes = record.total("forward_flops", "probe") + record.total("backward_flops", "probe")
    told, source = _full_seconds(record, full, bill, reference)
    return Account(
        spent_flops=spent,
        full_flops=reference,
        probe_flops=probes,
        skipped_flops=record.total("skipped_flops"),
        seconds=seconds,
        full_seconds=told,
        full_seconds_from=source,
        peak_bytes=bill.get("peak_memory_bytes", 0),
        tokens=int(record.total("tokens", "train")),
        unread_tokens=int(record.total("unread_tokens", "train")),
        full_peak_bytes=full.get("peak_memory_bytes", 0),
        bill=bill,
    )


def _full_seconds(
    record: RunRecord, full: Mapping[str, Any], bill: Mapping[str, Any], flops: float
) -> tuple[float, str]:
    """Of full fine-tuning, and how they are known."""
    if "estimated_seconds" in full:
        seconds = float(full["estimated_seconds"])
        return seconds, "estimated from some batches of it that were measured."
    if bill.get("full_seconds_by_clock"):
        seconds = float(bill["full_seconds_by_clock"])
        return seconds, "told by the clock that the budget was translated with."
    return _rate(record) * flops, "estimated at this run's seconds per FLOP."


def _rate(record: RunRecord) -> float:
    """Seconds per FLOP of this run's training batches."""
    flops = record.total("forward_flops", "train") + record.total("backward_flops", "train")
    return record.total("seconds", "train") / flops if flops else 0.0


def lines_of(account: Account) -> list[Line]:
    """The bill."""
    spent, full = account.spent_flops, account.full_flops
    found = [Line("FLOPs", flops(spent), flops(full), saved(spent, full, flops))]
    if account.probe_flops:
        found.append(Line("  of them for probes", flops(account.probe_flops)))
    if account.skipped_flops:
        found.append(Line("  spared by kept activations", flops(account.skipped_flops)))
    if account.unread_tokens:
        tokens = account.tokens
        found.append(Line("tokens read", str(tokens - account.unread_tokens), str(tokens),
                          f"{account.unread_tokens / tokens:.1%}"))  # fmt: skip
    found.append(_seconds(account))
    found += _energy(account)
    peak, other = account.peak_bytes, account.full_peak_bytes
    found.append(
        Line(
            "peak memory",
            gigabytes(peak) if peak else UNKNOWN,
            gigabytes(other) if other else UNKNOWN,
            saved(peak, other, gigabytes) if peak and other else "",
        )
    )
    return found


def _seconds(account: Account) -> Line:
    own, full = account.seconds, account.full_seconds
    if not full:
        return Line("seconds", f"{own:.1f}", UNKNOWN)
    return Line(
        "seconds",
        f"{own:.1f}",
        f"{full:.1f}{ESTIMATE}",
        saved(own, full, lambda value: f"{value:.1f}") + ESTIMATE,
    )


def _energy(account: Account) -> list[Line]:
    """Energy and CO2 where the bill has them; full fine-tuning's by the estimate of its seconds."""
    bill, more = account.bill, account.full_seconds / account.seconds if account.seconds else 0
    found = []
    for what, key, written in (("energy", "energy_kwh", _kwh), ("CO2", "co2_grams", _grams)):
        own = bill.get(key)
        if own is not None:
            mark = "" if bill.get("energy_measured") and key == "energy_kwh" else ESTIMATE
            found.append(
                Line(
                    what,
                    written(own) + mark,
                    written(own * more) + ESTIMATE if more else UNKNOWN,
                    saved(own, own * more, written) + ESTIMATE if more else "",
                )
            )
    return found


def notes_of(account: Account) -> list[str]:
    """How the lines came about."""
    bill = account.bill
    found = [
        "FLOPs are counted exactly from the cost graph, 2 per multiply-accumulate of matrix work; "
        "full fine-tuning is that of every tensor on the same data"
        + ("." if bill else ", as far as the run has come."),
        "Seconds are those of batches, probes, selections and tracing; full fine-tuning's are "
        + account.full_seconds_from,
    ]
    if "energy_kwh" in bill or "co2_grams" in bill:
        measured = "measured" if bill.get("energy_measured") else "estimated"
        source = str(bill.get("energy_source", "no source given"))
        intensity = bill.get("carbon_intensity")
        at = f"; CO2 at {intensity:g} g/kWh" if isinstance(intensity, int | float) else ""
        found.append(
            f"Energy is {measured} ({source.removeprefix('estimate: ')}){at}. Full "
            "fine-tuning's is this run's, times its estimated seconds over this run's."
        )
    return found


def quality_of(metrics: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Headings, and a line for each score; the column of the trained model only if it was judged.

    Both are empty before the first evaluation.
    """
    before, after = metrics.get("before"), metrics.get("after")
    if before is None:
        return [], []
    head = ["", "before", *(["after", "change"] if after else [])]
    body = []
    for key, label in {"loss": "held-out loss per token", **SCORES}.items():
        if key in before:
            digits = 4 if key == "loss" else 2
            line = [label, f"{before[key]:.{digits}f}"]
            if after:
                line += [f"{after[key]:.{digits}f}", f"{after[key] - before[key]:+.{digits}f}"]
            body.append(line)
    return head, body


def saved(own: float, full: float, written: Any) -> str:
    """What was saved, and the share of it, negative where more was spent."""
    if not full:
        return ""
    sign = "-" if own > full else ""
    return f"{sign}{written(abs(full - own))}, {(full - own) / full:.1%}"


def _kwh(value: float) -> str:
    return f"{value:.4g} kWh" if value >= 0.1 else f"{1000 * value:.4g} Wh"


def _grams(value: float) -> str:
    return f"{value:.4g} g"


def flops(value: float) -> str:
    """FLOPs to four digits."""
    for size, prefix in PREFIXES:
        if abs(value) >= size:
            return f"{value / size:.4g} {prefix}FLOPs"
    return f"{value:g} FLOPs"


def gigabytes(value: float) -> str:
    """Bytes as GB."""
    return f"{value / 1e9:.2f} GB"


def thinned(rows: Sequence[Any], most: int) -> list[Any]:
    """At most so many of the rows, evenly spaced, the first and the last among them."""
    if len(rows) <= most:
        return list(rows)
    return [rows[round(i * (len(rows) - 1) / (most - 1))] for i in range(most)]


def moment(iso: str) -> str:
    """A time in UTC, for people."""
    return iso.replace("T", " ").replace("+00:00", " UTC")
