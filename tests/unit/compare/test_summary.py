"""From records to rows and verdicts, against arithmetic done otherwise."""

import json
from fractions import Fraction
from statistics import NormalDist
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greentrainer.compare.summary import (
    Record,
    Row,
    charged_seconds,
    row_of,
    summarise,
    verdicts,
)
from greentrainer.records import written
from greentrainer.report.tables import lines, remarks
from tests.tiny import refusal

DATA = {"train": 8, "validation": 2, "test": 4, "sha256": "abc"}


def bill(method: str = "full", share: float = 1.0, seconds: float = 10.0, **more: Any) -> Any:
    """A bill of training alone, unless more is said."""
    figures = {
        "method": method, "spent_flops": int(1000 * share), "share_of_plain_full": share,
        "probe_share": 0.0, "train_seconds": seconds, "probe_seconds": 0.0, "select_seconds": 0.0,
        "trace_seconds": 0.0, "peak_memory_bytes": 100, "steps": 6,
    }  # fmt: skip
    return figures | more


def record(
    label: str = "full",
    loss: float = 2.0,
    rate: float = 1e-4,
    seed: int = 0,
    validation: float | None = None,
    cost: Any = None,
    **more: Any,
) -> dict[str, Any]:
    method = label.split(",")[0]
    judged = {} if validation is None else {"validation": {"loss": validation}}
    return {
        "label": label, "status": "done", "data": DATA, "test": {"loss": loss},
        "config": config_of(method, rate, seed),
        "bill": cost or bill(method), **judged, **more,
    }  # fmt: skip


def failed(label: str = "full", error: str = "no room", rate: float = 1e-4) -> dict[str, Any]:
    config = config_of(label, rate, 7)
    return {"label": label, "status": "failed", "error": error, "config": config}


def config_of(method: str, rate: float, seed: int) -> dict[str, Any]:
    told = {"method": method, "learning_rate": rate, "seed": seed}
    return {**told, "rho": 0.5, "metric": "first_order"}


def row(label: str, records: list[Record], rate: float = 1e-4) -> Row:
    return row_of(label, records, rate)


@given(st.lists(st.integers(1, 9999), min_size=1, max_size=6))
def test_a_row_has_mean_and_sample_deviation(thousandths: list[int]) -> None:
    losses = [Fraction(n, 1000) for n in thousandths]
    found = row("full", [record(loss=float(x), seed=i) for i, x in enumerate(losses)])
    count = len(losses)
    mean = sum(losses) / count
    assert found["loss"] == pytest.approx(float(mean), rel=1e-12)
    assert found["seeds"] == list(range(count))
    if count == 1:
        assert found["loss sd"] is None
    else:
        variance = sum((x - mean) ** 2 for x in losses) / (count - 1)
        assert found["loss sd"] ** 2 == pytest.approx(float(variance), rel=1e-9, abs=1e-15)


def test_scores_are_there_where_the_task_has_them() -> None:
    tests = [{"loss": 2.0, "rouge1": 30.0, "f1": 0.0}, {"loss": 2.0, "rouge1": 34.0, "f1": 1.0}]
    found = row("full", [record(seed=i, test=test) for i, test in enumerate(tests)])
    assert (found["rouge1"], found["f1"]) == (32.0, 0.5)
    assert found["rouge1 sd"] == pytest.approx(8**0.5)
    assert "rougeL" not in found


def test_costs_are_medians_and_those_of_a_method_that_selects_hold_all_of_it() -> None:
    extra = {"probe_seconds": 2.0, "select_seconds": 1.0, "trace_seconds": 3.0}
    shares = (0.48, 0.5, 0.49)
    bills = [
        bill("green", share, seconds, probe_share=0.1 * i, **extra)
        for i, (share, seconds) in enumerate(zip(shares, (14.0, 4.0, 24.0), strict=True))
    ]
    rows = [record("green", cost=one, seed=i) for i, one in enumerate(bills)]
    found = row("green", rows)
    assert found["flops / full"] == 0.49
    assert found["flops"] == 490
    assert (found["seconds, lowest"], found["seconds"], found["seconds, highest"]) == (10, 20, 30)
    assert found["probe and selection / seconds"] == 3 / 20
    assert found["tracing / seconds"] == 3 / 20
    assert found["probe flops / spent"] == pytest.approx(0.1)
    assert charged_seconds(bills[0], selects=False) == 14.0
    fixed = row("top2", [record("top2", cost=bill("top2", seconds=14.0, **extra))])
    assert fixed["seconds"] == 14.0
    assert fixed["tracing / seconds"] == 0.0


def test_shares_of_time_and_memory_are_of_full_fine_tuning() -> None:
    records = [
        record("full", cost=bill(seconds=20.0, peak_memory_bytes=400)),
        record("top2", cost=bill("top2", 0.6, 12.0, peak_memory_bytes=300)),
        record("zero_shot") | {"bill": None},
    ]
    del records[2]["bill"]
    rows = summarise("a", {"full": 1e-4, "top2": 1e-4, "zero_shot": None}, records)["rows"]
    assert [row.get("seconds / full") for row in rows] == [1.0, 0.6, None]
    assert [row.get("memory / full") for row in rows] == [1.0, 0.75, None]
    assert "flops" not in rows[2]
    assert "learning_rate" not in rows[2]
    alone = summarise("a", {"top2": 1e-4}, [records[1]])["rows"]
    assert "seconds / full" not in alone[0]


@pytest.mark.parametrize(("measured", "heading"), [(True, "Wh"), (False, "Wh (estimate)")])
def test_energy_is_shown_where_records_have_it(measured: bool, heading: str) -> None:
    more: Any = {"energy_kwh": 0.012, "co2_grams": 5.76, "energy_measured": measured}
    rows = [row("full", [record(cost=bill(**more))]), row("top2", [record("top2")])]
    head, body = lines(rows)
    at = head.index(heading)
    assert [line[at : at + 2] for line in body] == [["12", "5.76"], ["", ""]]
    assert not any(name.startswith("Wh") for name in lines(rows[1:])[0])


def test_runs_side_by_side_are_remarked_on() -> None:
    alone = [record(), record(side_by_side=1), failed() | {"side_by_side": 4}]
    untrained = record("zero_shot", side_by_side=4)
    del untrained["bill"]
    assert remarks([*alone, untrained]) == []
    assert remarks([*alone, record(side_by_side=2), record(side_by_side=3)]) == [
        "seconds and energy: 2 of 4 runs were made with up to 3 side by side, where each takes "
        "longer than alone"
    ]


def test_a_row_is_judged_at_its_rate_alone() -> None:
    tried = [
        record(rate=1e-4, validation=2.0, loss=1.0),
        record(rate=2e-4, validation=1.8, loss=1.9),
        record(rate=4e-4, validation=1.9, loss=0.5),
    ]
    found = row("full", tried, 2e-4)
    assert (found["learning_rate"], found["loss"]) == (2e-4, 1.9)
    assert found["tuned over"] == [1e-4, 2e-4, 4e-4]
    edges = [row("full", tried, rate)["at the edge of its grid"] for rate in (1e-4, 2e-4, 4e-4)]
    assert edges == [True, False, True]
    assert not row("full", tried[:1])["at the edge of its grid"]


def test_what_failed_is_told_and_does_not_count() -> None:
    found = row("full", [record(loss=2.0), failed(), failed(error="a"), failed(rate=2e-4)])
    assert found["failures"] == ["a", "no room"]
    assert found["seeds failed"] == [7, 7]
    assert (found["loss"], found["seeds"]) == (2.0, [0])
    assert row("lora", [failed("lora")]) == {
        "label": "lora", "method": "lora", "rho": 0.5, "metric": "first_order",
        "failures": ["no room"], "seeds failed": [7],
    }  # fmt: skip
    assert row("lora", []) == {"label": "lora"}


def rows_of(*told: tuple[str, float, float, tuple[float, ...]]) -> list[dict[str, Any]]:
    """Label, share of FLOPs, and the losses of as many seeds."""
    return [
        row(label, [record(label, x, seed=i, cost=bill(label, share))
                       for i, x in enumerate(loss + d for d in around)])
        for label, share, loss, around in told
    ]  # fmt: skip


def test_the_best_of_each_budget_and_what_is_as_good() -> None:
    wide, narrow = (-0.1, 0.0, 0.1), (-0.001, 0.0, 0.001)
    rows = rows_of(
        ("full", 1.0, 2.00, narrow),
        ("green", 0.5, 2.10, wide),
        ("random", 0.5, 2.20, wide),
        ("cheap", 0.44, 2.50, narrow),
        ("slightly over", 0.604, 2.05, narrow),
    )
    rows.append({"label": "zero_shot", "loss": 9.0, "loss sd": None, "seeds": [0]})
    found = verdicts(rows)
    assert found == [
        "at 45% of full fine-tuning's FLOPs: cheap (2.5000)",
        "at 50% of full fine-tuning's FLOPs: green (2.1000), within noise of it random",
        "at 60% of full fine-tuning's FLOPs: slightly over (2.0500), within noise of it green",
        "at 70% of full fine-tuning's FLOPs: slightly over (2.0500), within noise of it green",
        "at 100% of full fine-tuning's FLOPs: full (2.0000), within noise of it green",
    ]
    assert verdicts([rows[-1]])[0] == "at 45% of full fine-tuning's FLOPs: zero_shot (9.0000)"
    assert verdicts([{"label": "not run"}]) == []


@given(
    st.integers(2, 5),
    st.integers(2, 5),
    st.integers(0, 300),
    st.integers(1, 200),
    st.integers(1, 200),
)
def test_noise_is_two_standard_errors_of_the_difference(
    first: int, second: int, gap: int, a: int, b: int
) -> None:
    """Each row's seeds lie at +-s around its mean, as far as their number is even."""

    def spread(count: int, size: int) -> tuple[float, ...]:
        pairs = [x for _ in range(count // 2) for x in (-size / 1000, size / 1000)]
        return (*pairs, *([0.0] if count % 2 else []))

    rows = rows_of(
        ("best", 0.5, 2.0, spread(first, a)), ("other", 0.5, 2.0 + gap / 1000, spread(second, b))
    )
    variances = [
        Fraction(size, 1000) ** 2 * (count - count % 2) / (count - 1) / count
        for count, size in ((first, a), (second, b))
    ]
    distance = NormalDist(0, float(sum(variances)) ** 0.5)
    limit = 2 * distance.stdev
    if abs(gap / 1000 - limit) > 1e-9 and gap:
        (line,) = verdicts(rows, budgets=(0.5,))
        assert ("within noise of it other" in line) == (gap / 1000 < limit)


def test_a_single_seed_scatters_as_the_other_row_does() -> None:
    single, several = ("best", 0.5, 2.0, (0.0,)), ("other", 0.5, 2.01, (-0.1, 0.0, 0.1))
    assert all("noise of it other" in line for line in verdicts(rows_of(single, several)))
    assert all("noise" not in line for line in verdicts(rows_of(single, ("b", 0.5, 2.01, (0.0,)))))


def test_lists_of_numbers_stand_on_one_line_and_texts_stay() -> None:
    told = {"losses": [1.5, -2e-05, 3], "texts": ["a [ 1,  2 ]", "[\n1,\n2\n]"], "none": []}
    text = written(told)
    assert json.loads(text) == told
    assert '"losses": [1.5, -2e-05, 3]' in text


def test_the_whole_of_it() -> None:
    records = [record("full", seed=0), record("full", seed=1), failed("lora")]
    found = summarise("a", {"lora": 1e-4, "full": 1e-4}, records, "a note")
    assert found["records"] == records
    assert [row["label"] for row in found["rows"]] == ["lora", "full"]
    assert found["data"] == [DATA]
    assert (found["name"], found["note"]) == ("a", "a note")
    assert found["verdicts"] == verdicts(found["rows"])
    assert summarise("a", {"lora": 1e-4}, [failed("lora")])["data"] == []


def test_runs_on_other_data_are_refused() -> None:
    other = record("green") | {"data": DATA | {"sha256": "def"}}
    with refusal("made on other data than others: delete their records"):
        summarise("a", {"full": 1e-4, "green": 1e-4}, [record("full"), other])


def test_rows_may_differ_in_their_data_by_design() -> None:
    other = record("green") | {"data": DATA | {"sha256": "def"}}
    other["config"]["max_length"] = 32
    found = summarise("a", {"full": 1e-4, "green": 1e-4}, [record("full"), other])
    assert [data["sha256"] for data in found["data"]] == ["abc", "def"]
