"""The page of one run: true of any folder, offline, and deaf to what names say."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from greentrainer.report.account import account_of, lines_of, thinned
from greentrainer.report.choices import kinds, places, ranges
from greentrainer.report.draw import draw
from greentrainer.report.record import read
from tests.folders import HOSTILE, folder
from tests.tiny import cut, refusal


class Page(HTMLParser):
    """All elements and what they ask the network for; text without markup."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.asked: list[str] = []
        self.handlers: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "data", "action"):
                self.asked.append(value or "")
            if name.startswith("on"):
                self.handlers.append(name)

    def handle_data(self, data: str) -> None:
        self.text += data


def drawn(path: Path) -> tuple[str, Page]:
    html = draw(path).read_text(encoding="utf-8")
    page = Page(html)
    assert html.startswith("<!DOCTYPE html>")
    assert len(html.encode()) < 2_000_000
    assert "script" not in page.tags
    assert not page.handlers
    assert all(one.startswith(("#", "data:image/png;base64,")) for one in page.asked)
    assert not re.search(r"url\((?!#)|@import", html)
    return html, page


def test_a_finished_run_has_every_part(tmp_path: Path) -> None:
    _, page = drawn(folder(tmp_path / "run"))
    for part in ("The bill", "Quality", "Loss", "What was chosen", "How often", "Importance",
                 "Positions", "What gradients cost", "Every selection", "Predictions",
                 "How it was made"):  # fmt: skip
        assert part in page.text
    assert "Done after 6 of 6 steps." in page.text
    assert "for 50.0% of full fine-tuning's FLOPs" in page.text
    assert "held-out loss 5.000 before, 4.000 after" in page.text
    assert page.tags.count("figure") == page.tags.count("svg") == 6
    assert page.tags.count("details") >= page.tags.count("figure")
    assert "rho: 0.5" in page.text


def test_the_same_folder_gives_the_same_bytes(tmp_path: Path) -> None:
    path = folder(tmp_path / "run")
    assert drawn(path)[0] == drawn(path)[0]


@pytest.mark.parametrize(
    ("status", "error", "says"),
    [
        ("failed", "the loss of step 5 is nan", "Failed after 4 of 6 steps. the loss of step 5"),
        ("interrupted", None, "Interrupted after 4 of 6 steps."),
        ("running", None, "Running, or killed: when this page was drawn the run stood after 4"),
    ],
)
def test_a_run_that_did_not_end_says_how_far_it_came(
    status: str, error: str | None, says: str, tmp_path: Path
) -> None:
    _, page = drawn(folder(tmp_path / "run", status, steps=4, error=error))
    assert says in page.text
    assert "not evaluated" in page.text
    assert "Predictions" not in page.text
    headings = page.text.split("Quality", 1)[1].split("Loss", 1)[0]
    assert "before" in headings
    assert "after" not in headings


def test_a_folder_with_nothing_but_a_start_is_drawn(tmp_path: Path) -> None:
    path = folder(tmp_path / "run", "failed", error="no task 'x'")
    for name in ("costs.json", "metrics.json", "predictions.jsonl", "ledger.jsonl", "steps.jsonl",
                 "selections.jsonl", "log.jsonl"):  # fmt: skip
        (path / name).unlink(missing_ok=True)
    state = json.loads((path / "run.json").read_text()) | {"planned_steps": None, "steps": 0}
    (path / "run.json").write_text(json.dumps(state))
    _, page = drawn(path)
    assert "Failed before the first step. no task 'x'" in page.text
    assert "svg" not in page.tags


def test_a_line_cut_short_by_a_kill_is_left_out(tmp_path: Path) -> None:
    path = folder(tmp_path / "run", "running", steps=4)
    for name in ("ledger.jsonl", "steps.jsonl", "selections.jsonl"):
        cut(path / name, (path / name).stat().st_size - 9)
    record = read(path)
    assert (record.batches, record.steps_made, len(record.selections)) == (3, 3, 2)
    drawn(path)


def test_hostile_names_are_shown_and_not_executed(tmp_path: Path) -> None:
    path = folder(tmp_path / "run", evil=HOSTILE, bill={
        "energy_kwh": 0.1, "co2_grams": 40.0, "energy_source": HOSTILE, "energy_measured": False,
        "carbon_intensity": 400,
    })  # fmt: skip
    html, page = drawn(path)
    assert "<script" not in html
    assert "b" not in page.tags
    assert page.text.count(HOSTILE) > 20
    assert "mathdefault" not in html


def test_what_is_not_measured_is_an_estimate(tmp_path: Path) -> None:
    path = folder(tmp_path / "run", bill={"energy_kwh": 0.5, "energy_measured": True,
                                          "co2_grams": 90.0})  # fmt: skip
    lines = {line.what: line for line in lines_of(account_of(read(path)))}
    assert (lines["FLOPs"].spent, lines["FLOPs"].saved) == ("90 GFLOPs", "90 GFLOPs, 50.0%")
    assert lines["seconds"].spent == "4.6"
    assert lines["seconds"].full == "6.0 (estimate)"
    assert lines["energy"].spent == "0.5 kWh"
    assert lines["energy"].full.endswith("(estimate)")
    assert lines["CO2"].spent == "90 g (estimate)"
    assert lines["peak memory"].full == "not measured"
    metrics: dict[str, Any] = json.loads((path / "metrics.json").read_text())
    metrics["full_fine_tuning"] = {"estimated_seconds": 9.2, "peak_memory_bytes": 4 * 10**9}
    (path / "metrics.json").write_text(json.dumps(metrics))
    lines = {line.what: line for line in lines_of(account_of(read(path)))}
    assert lines["seconds"].saved == "4.6, 50.0% (estimate)"
    assert lines["peak memory"].saved == "2.00 GB, 50.0%"


@pytest.mark.thorough
def test_a_long_run_of_a_large_model_stays_small(tmp_path: Path) -> None:
    path = folder(tmp_path / "run", steps=5000, planned=5000, blocks=300, events=400)
    _, page = drawn(path)
    assert "more lines are in the run's folder" in page.text


def test_secrets_are_not_shown(tmp_path: Path) -> None:
    path = folder(tmp_path / "run", evil="hf_abc", training={"hub_token": "hf_abc"})
    html, _ = drawn(path)
    record = read(path)
    assert "hf_abc" not in record.config_text
    assert "hf_abc" not in str(record.command)
    assert "(hidden)" in html


def test_places_add_up_to_what_reaching_the_deepest_tensor_costs(tmp_path: Path) -> None:
    record = read(folder(tmp_path / "run"))
    reach = max(t["closure_flops"] - t["flops"] for t in record.tensors)
    assert sum(row["passed"] for row in places(record)) == reach
    own = sum(t["flops"] for t in record.tensors)
    assert sum(row["own"] for row in places(record)) == own
    assert sum(row["own"] for row in kinds(record)) == own
    assert [row["place"] for row in places(record)] == ["norm", "block 2", "block 1", "block 0"]


def test_numbers_in_short() -> None:
    assert ranges([1, 2, 3, 7, 9, 10]) == "1-3, 7, 9-10"
    assert thinned(range(10), 4) == [0, 3, 6, 9]
    assert thinned(range(3), 4) == [0, 1, 2]


def test_a_folder_that_is_neither_is_refused(tmp_path: Path) -> None:
    with refusal(str(tmp_path), "name the output folder of greentrainer train or compare"):
        draw(tmp_path)
    path = folder(tmp_path / "run")
    (path / "metrics.json").write_text("{")
    with refusal("is no whole record of a run"):
        draw(path)


@pytest.mark.parametrize(
    ("name", "text"),
    [("run.json", "[]"), ("run.json", '{"status": "done"}'), ("metrics.json", '{"bill": 3}'),
     ("ledger.jsonl", '{"kind": "train"}\n3\n'), ("config.yaml", "a: &a [*a]"),
     ("config.yaml", "[]")],
)  # fmt: skip
def test_files_that_hold_other_values_are_one_line(name: str, text: str, tmp_path: Path) -> None:
    path = folder(tmp_path / "run")
    (path / name).write_text(text)
    with refusal(str(path)):
        draw(path)
    assert not (path / "report.html").exists()
