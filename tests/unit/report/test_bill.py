"""The bill on a terminal: every row one line where there are eighty columns."""

import io
from typing import Any

import pytest
from rich.console import Console

from greentrainer.report import bill_table


def summary(**more: Any) -> dict[str, Any]:
    bill = {
        "method": "green",
        "budget": {"unit": "rho", "amount": 0.5},
        "interrupted": False,
        "spent_flops": 5e13,
        "plain_full_flops": 1e14,
        "probe_flops": 1e12,
        "probe_share": 0.01,
        "skipped_flops": 1e13,
        "train_seconds": 100.0,
        "probe_seconds": 1.0,
        "select_seconds": 1.0,
        "trace_seconds": 1.0,
        "wall_seconds": 110.0,
        "energy_measured": False,
        "energy_source": "estimate: 65 W assumed",
        "energy_kwh": 0.01,
        "carbon_intensity": 480.0,
        "co2_grams": 4.8,
        "steps": 69,
        "steps_asked": 70,
        **more,
    }
    return {"bill": bill, "before": {"loss": 4.1}, "after": {"loss": 2.8}}


def printed(told: dict[str, Any], width: int = 80) -> str:
    written = io.StringIO()
    Console(file=written, width=width).print(bill_table(told))
    return written.getvalue()


@pytest.mark.parametrize("batches", [1, 200])
def test_what_is_said_beside_the_figures_breaks_no_row(batches: int) -> None:
    plain = printed(summary())
    told = printed(
        summary(verified_batches=batches, worst_deviation=0.0123, ending="every step was made")
    )
    assert "spared: kept activations" in plain
    assert "spared: kept activations" in told
    assert "ended: every step was made" in told
    steps = "1 step" if batches == 1 else f"{batches} steps"
    assert f"verified: {steps} counted, worst deviation 1.2%" in told


def test_a_bill_with_nothing_to_remark_ends_with_its_table() -> None:
    assert printed(summary()).rstrip().endswith("┘")


def test_seconds_stand_beside_what_the_clock_tells_of_full_fine_tuning() -> None:
    row = next(line for line in printed(summary(full_seconds_by_clock=206.0)).splitlines()
               if "seconds" in line)  # fmt: skip
    assert [cell.strip() for cell in row.split("│")[1:-1]] == [
        "seconds (full: by the clock)", "103", "206", "50.0%",
    ]  # fmt: skip
    assert "seconds" not in printed(summary())
