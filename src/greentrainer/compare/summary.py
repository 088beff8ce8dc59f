"""From records to the rows of a table, and to what they say.

A row is one label at its best learning rate, with mean and standard deviation over the seeds.
Shares of FLOPs are of plain full fine-tuning of the same data; shares of seconds and memory are of
the row whose method is `full`, if there is one.
"""

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from greentrainer.report import SCORES, spent_seconds

Record = dict[str, Any]
Row = dict[str, Any]

DATA_KEYS = (
    "model", "task", "prompt_format", "prompt_column", "completion_column", "messages_column",
    "test_path", "max_length", "train_limit", "validation_limit", "test_limit", "data_seed",
)  # fmt: skip
"""What of a configuration says which data a run is on."""


def summarise(
    name: str, rates: Mapping[str, float | None], records: list[Record], note: str = ""
) -> Record:
    """The content of `results.json`.

    rates: the learning rate of each row, None for one that has none to choose.
    layouts: lists of tensors, by a name that records refer to.
    """
    layouts: dict[str, Any] = {}
    records = [_with_layout(record, layouts) for record in records]
    rows = [
        row_of(label, [r for r in records if r["label"] == label], rate)
        for label, rate in rates.items()
    ]
    _add_shares(rows)
    return {
        "name": name,
        "note": note,
        "data": data_of([r for r in records if r["status"] == "done"]),
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


def row_of(label: str, records: Sequence[Record], rate: float | None) -> Row:
    """One row of the table."""
    row: Row = {"label": label}
    if records:
        row |= {key: records[0]["config"][key] for key in ("method", "rho", "metric")}
    own = [r for r in records if rate is None or r["config"]["learning_rate"] == rate]
    done = [record for record in own if record["status"] == "done"]
    failed = [record for record in own if record["status"] != "done"]
    if failed:
        row["failures"] = sorted({record["error"] for record in failed})
        row["seeds failed"] = sorted(record["config"]["seed"] for record in failed)
    if not done:
        return row
    row["seeds"] = sorted(record["config"]["seed"] for record in done)
    row |= _spread("loss", [r["test"]["loss"] for r in done])
    for score in SCORES:
        row |= _spread(score, [r["test"][score] for r in done if score in r["test"]])
    trained = "bill" in done[0]
    return row | (_tuning(records, rate) | _costs([r["bill"] for r in done]) if trained else {})


def _tuning(records: Sequence[Record], rate: float | None) -> Row:
    """The learning rate, those it was chosen from, and whether it is the least or greatest."""
    own = records[0]["config"]["learning_rate"] if rate is None else rate
    tried = sorted({r["config"]["learning_rate"] for r in records if "validation" in r})
    edge = len(tried) > 1 and own in (tried[0], tried[-1])
    return {"learning_rate": own, "tuned over": tried, "at the edge of its grid": edge}


def charged_seconds(bill: Mapping[str, Any], selects: bool) -> float:
    """Seconds of training; of a method that selects, with probes, selection and tracing."""
    return spent_seconds(bill) if selects else float(bill["train_seconds"])


def _costs(bills: Sequence[Mapping[str, Any]]) -> Row:
    selects = bills[0]["method"] == "green"
    seconds = [charged_seconds(bill, selects) for bill in bills]
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
        "tail tokens / tokens": middle(
            bill["tail_tokens"] / bill["tokens"] if "tail_tokens" in bill else 1.0 for bill in bills
        ),
        "peak_memory_bytes": middle(bill["peak_memory_bytes"] for bill in bills),
        "steps": middle(bill["steps"] for bill in bills),
        **_energy(bills),
    }


def _energy(bills: Sequence[Mapping[str, Any]]) -> Row:
    """Energy and CO2, where all records have them; `energy_measured`: of all it is no estimate."""
    if not all("energy_kwh" in bill for bill in bills):
        return {}
    return {
        "energy_kwh": statistics.median(bill["energy_kwh"] for bill in bills),
        "co2_grams": statistics.median(bill["co2_grams"] for bill in bills),
        "energy_measured": all(bill["energy_measured"] for bill in bills),
    }


def _add_shares(rows: Iterable[Row]) -> None:
    rows = list(rows)
    full = next((row for row in rows if "seconds" in row and row["method"] == "full"), None)
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


def data_of(done: Iterable[Record]) -> list[Record]:
    """What runs were trained and tested on, one entry unless rows differ in that by design.

    Raises ValueError if runs that should have had the same data had not.
    """
    found: dict[str, Record] = {}
    for record in done:
        asked = json.dumps([record["config"].get(key) for key in DATA_KEYS])
        if found.setdefault(asked, record["data"]) != record["data"]:
            raise ValueError(
                "some runs of this comparison were made on other data than others: "
                "delete their records, or compare into another folder"
            )
    return list(found.values())


def verdicts(
    rows: Sequence[Row], budgets: Sequence[float] = (0.45, 0.5, 0.6, 0.7, 1.0)
) -> list[str]:
    """Which row has the lowest held-out loss at each budget, and which are as good within noise.

    Noise: twice the standard error of the difference, from the two rows' seeds; a row with one seed
    is taken to scatter as the other does.
    """
    finished = [row for row in rows if "loss" in row]
    found = []
    for budget in budgets:
        able = [row for row in finished if row.get("flops / full", 0.0) <= budget + 0.005]
        if not able:
            continue
        best = min(able, key=lambda row: float(row["loss"]))
        ties = [row["label"] for row in able if row is not best and _within_noise(row, best)]
        line = f"at {budget:.0%} of full fine-tuning's FLOPs: {best['label']} ({best['loss']:.4f})"
        found.append(line + (f", within noise of it {', '.join(ties)}" if ties else ""))
    return found


def _within_noise(row: Row, best: Row) -> bool:
    known = [one["loss sd"] for one in (row, best) if one["loss sd"] is not None]
    if not known:
        return False
    scatter = {id(one): one["loss sd"] if one["loss sd"] is not None else known[0]
               for one in (row, best)}  # fmt: skip
    error = sum(scatter[id(one)] ** 2 / len(one["seeds"]) for one in (row, best)) ** 0.5
    return bool(row["loss"] - best["loss"] <= 2 * error)
