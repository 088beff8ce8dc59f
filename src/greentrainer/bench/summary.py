"""From records to the rows of a table, and to what they say.  No torch here.

A row is one label at its best learning rate, with mean and standard deviation over the seeds.
Shares of FLOPs are of plain full fine-tuning of the same data; shares of seconds and memory are of
the row whose method is `full`, if there is one.
"""

import json
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Record = dict[str, Any]
Row = dict[str, Any]

SCORES = (
    "rouge1", "rouge2", "rougeL", "exact_match", "f1",
    "accuracy_likelihood", "accuracy_generation",
)  # fmt: skip
"""What a test may be scored by beside its loss, all in per cent, higher is better."""


def summarise(name: str, labels: Sequence[str], records: list[Record], note: str = "") -> Record:
    """The content of `results.json`.

    layouts: lists of tensors, by a name that records refer to.
    """
    layouts: dict[str, Any] = {}
    records = [_with_layout(record, layouts) for record in records]
    rows = [row_of(label, [r for r in records if r["label"] == label]) for label in labels]
    _add_shares(rows)
    return {
        "name": name,
        "note": note,
        "data": _common([r["data"] for r in records if r["status"] == "done"]),
        "rows": rows,
        "verdicts": verdicts(rows),
        "layouts": layouts,
        "records": records,
    }


def _with_layout(record: Record, layouts: dict[str, Any]) -> Record:
    """The record with its list of tensors, the same in most records, put into `layouts`."""
    if "tensors" not in record:
        return record
    known = [name for name, tensors in layouts.items() if tensors == record["tensors"]]
    name = known[0] if known else f"layout {len(layouts) + 1}"
    layouts[name] = record["tensors"]
    return {k: v for k, v in record.items() if k != "tensors"} | {"layout": name}


def written(results: Mapping[str, Any]) -> str:
    """JSON for people and diffs: indented, but lists of numbers on one line."""
    text = json.dumps(results, indent=1)
    return re.sub(r"\[\s+([-+.\deE,\s]+?)\s+\]", lambda m: f"[{' '.join(m[1].split())}]", text)


def row_of(label: str, records: Sequence[Record]) -> Row:
    """One row of the table."""
    done = [record for record in records if record["status"] == "done"]
    failed = [record for record in records if record["status"] != "done"]
    row: Row = {"label": label, "method": records[0]["config"]["method"] if records else None}
    if failed:
        row["failures"] = sorted({record["error"] for record in failed})
    if not done:
        return row
    rate = chosen_rate(done)
    final = [r for r in done if r["config"]["learning_rate"] == rate]
    trained = "bill" in final[0]
    row["seeds"] = sorted(r["config"]["seed"] for r in final)
    if trained:
        row["learning_rate"] = rate
        row["tuned over"] = sorted({r["config"]["learning_rate"] for r in done})
    row |= _spread("loss", [r["test"]["loss"] for r in final])
    for score in SCORES:
        row |= _spread(score, [r["test"][score] for r in final if score in r["test"]])
    return row | (_costs([r["bill"] for r in final]) if trained else {})


def chosen_rate(done: Sequence[Record]) -> float:
    """The learning rate with the lowest validation loss under the first seed.

    Without validation, the one that has most seeds.
    """
    rates: dict[float, list[Record]] = {}
    for record in done:
        rates.setdefault(record["config"]["learning_rate"], []).append(record)
    first = min(record["config"]["seed"] for record in done)

    def rank(rate: float) -> tuple[int, float]:
        own = rates[rate]
        judged = [r["validation"]["loss"] for r in own if r["config"]["seed"] == first
                  and "validation" in r]  # fmt: skip
        return -len(own), judged[0] if judged else 0.0

    return min(rates, key=rank)


def seconds_of(bill: Mapping[str, Any], selects: bool) -> float:
    """Seconds of training; of a method that selects, with probes, selection and tracing."""
    extra = ("probe_seconds", "select_seconds", "trace_seconds") if selects else ()
    return float(bill["train_seconds"] + sum(bill[key] for key in extra))


def _costs(bills: Sequence[Mapping[str, Any]]) -> Row:
    selects = bills[0]["method"] == "green"
    seconds = [seconds_of(bill, selects) for bill in bills]
    middle = statistics.median
    return {
        "flops": middle(bill["spent_flops"] for bill in bills),
        "flops / full": middle(bill["share_of_plain_full"] for bill in bills),
        "probe flops / spent": middle(bill["probe_share"] for bill in bills),
        "seconds": middle(seconds),
        "seconds, lowest": min(seconds),
        "seconds, highest": max(seconds),
        "probe and selection / seconds": middle(
            (bill["probe_seconds"] + bill["select_seconds"]) / total
            for bill, total in zip(bills, seconds, strict=True)
        ),
        "tracing / seconds": middle(
            bill["trace_seconds"] / total if selects else 0.0
            for bill, total in zip(bills, seconds, strict=True)
        ),
        "peak_memory_bytes": middle(bill["peak_memory_bytes"] for bill in bills),
        "steps": middle(bill["steps"] for bill in bills),
    }


def _add_shares(rows: Iterable[Row]) -> None:
    rows = list(rows)
    full = next((row for row in rows if row["method"] == "full" and "seconds" in row), None)
    for row in rows if full else ():
        for key, share in (("seconds", "seconds / full"), ("peak_memory_bytes", "memory / full")):
            if key in row and full:
                row[share] = row[key] / full[key]


def _spread(name: str, values: Sequence[float]) -> Row:
    """Mean, and standard deviation over seeds where there are several."""
    if not values:
        return {}
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return {name: statistics.mean(values), f"{name} sd": deviation}


def _common(data: Sequence[Record]) -> Record | None:
    """What all runs were trained and tested on.  Raises ValueError if it was not the same."""
    if not data:
        return None
    if any(one != data[0] for one in data):
        raise ValueError(
            "some runs of this comparison were made on other data than others: "
            "delete their records, or compare into another folder"
        )
    return data[0]


def verdicts(
    rows: Sequence[Row], budgets: Sequence[float] = (0.45, 0.5, 0.6, 0.7, 1.0)
) -> list[str]:
    """Which row has the lowest held-out loss at each budget, and which are as good within noise.

    Noise: twice the standard error of the difference, from the two rows' seeds.
    """
    found = []
    for budget in budgets:
        able = [row for row in rows if row.get("flops / full", 2.0) <= budget + 0.005]
        if not able:
            continue
        best = min(able, key=lambda row: float(row["loss"]))
        ties = [row["label"] for row in able if row is not best and _within_noise(row, best)]
        line = f"at {budget:.0%} of full fine-tuning's FLOPs: {best['label']} ({best['loss']:.4f})"
        found.append(line + (f", within noise of it {', '.join(ties)}" if ties else ""))
    return found


def _within_noise(row: Row, best: Row) -> bool:
    pair = (row, best)
    if any(one["loss sd"] is None for one in pair):
        return False
    error = sum(one["loss sd"] ** 2 / len(one["seeds"]) for one in pair) ** 0.5
    return bool(row["loss"] - best["loss"] <= 2 * error)
