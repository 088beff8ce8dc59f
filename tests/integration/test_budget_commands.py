"""Budgets in other units, as a user types them."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from greentrainer.budget import calibrate
from greentrainer.hf.models import CACHE_VARIABLE
from tests.integration.test_cli import FLAGS, command
from tests.tiny import saved


@pytest.fixture
def typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    rows = tmp_path / "mine.jsonl"
    lines = [{"prompt": f"add {i} and {i}", "completion": f"it is {2 * i}"} for i in range(100)]
    rows.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    model = saved(tmp_path / "base")
    return ["train", "--model", model, "--task", rows, "--output-dir", tmp_path / "run", *FLAGS]


def bill(typed: list[Any]) -> dict[str, Any]:
    folder = typed[typed.index("--output-dir") + 1]
    found: dict[str, Any] = json.loads((folder / "metrics.json").read_text())["bill"]
    return found


@pytest.mark.filterwarnings("ignore:.*training everything takes about")
@pytest.mark.parametrize(
    ("flag", "amount"),
    [
        ("--hours", 1),
        *(
            pytest.param(*one, marks=pytest.mark.thorough)
            for one in (("--kwh", 1), ("--co2-grams", 500), ("--flops", "1e15"))
        ),
    ],
)
def test_a_generous_budget_trains_everything(
    flag: str, amount: Any, typed: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert command(monkeypatch, *typed, flag, amount) == 0
    found = bill(typed)
    unit = flag.removeprefix("--").replace("-", "_")
    assert found["budget"] == {"unit": unit, "amount": float(amount)}
    assert found["tensors_trained_last"] == found["tensors"]
    config = yaml.safe_load((typed[typed.index("--output-dir") + 1] / "config.yaml").read_text())
    assert (config[unit], config["rho"]) == (float(amount), None)


@pytest.mark.filterwarnings("ignore:.*training everything takes about")
def test_a_second_run_times_nothing(typed: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does one on fewer rows; one with other batches does, and after one that keeps nothing."""
    timed: list[Any] = []
    really = calibrate._timed

    def noted(*args: Any) -> Any:
        timed.append(args)
        return really(*args)

    def passes(*more: Any) -> int:
        timed.clear()
        assert command(monkeypatch, *typed, "--hours", 1, "--overwrite", *more) == 0
        return len(timed)

    monkeypatch.setattr(calibrate, "_timed", noted)
    assert passes() > 0
    assert passes() > 0  # nothing was kept
    monkeypatch.delenv("GREENTRAINER_KEEP")
    assert passes() > 0
    assert passes() == 0
    assert passes("--train-limit", 60) == 0
    assert passes("--set", "batch_size=6") > 0


def test_flops_bound_a_run(typed: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    assert command(monkeypatch, *typed, "--rho", 1) == 0
    whole = bill(typed)["full_flops"]
    assert command(monkeypatch, *typed, "--flops", 0.6 * whole, "--overwrite") == 0
    assert bill(typed)["spent_flops"] <= 0.6 * whole


def test_seconds_may_be_what_rho_is_of(typed: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    short = "--rho", 0.9, "--cost", "seconds"
    assert command(monkeypatch, *typed, *short, "--steps", "all") == 0
    assert bill(typed)["clock"]["forward"] > 0


def test_seconds_that_getting_ready_takes_are_told_of(
    typed: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Full fine-tuning of these few rows takes less time than tracing them."""
    assert command(monkeypatch, *typed, "--rho", 0.01, "--cost", "seconds") == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert "train on more examples" in told[-1]


def test_a_schedule_is_followed(
    typed: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "grid.csv"
    path.write_text("time,gCO2/kWh\n0,100\n")
    assert command(monkeypatch, *typed, "--rho", 0.7, "--carbon-schedule", path) == 0
    found = bill(typed)
    assert found["carbon_intensity"] == pytest.approx(100)
    assert found["co2_grams"] == pytest.approx(100 * found["energy_kwh"])


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--hours", "1e-9"], "even the smallest selection takes about"),
        (["--rho", "0.5", "--hours", "1"], "give rho or hours, not both"),
        (["--hours", "-1"], "hours"),
        (["--hours", "nan"], "hours"),
        (["--hours", "1", "--method", "full"], "use green"),
        (["--hours", "1", "--method", "full_at_budget"], "rho or flops"),
        (["--cost", "money"], "cost"),
        (["--carbon-schedule", "nowhere.csv"], "cannot read the carbon schedule"),
    ],
)
def test_a_budget_that_cannot_be_is_refused_in_one_line(
    words: list[str], says: str, typed: list[Any], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert command(monkeypatch, *typed, *words) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert says in error[-1]
    assert error[-1].startswith("error: ")


def test_a_flag_takes_the_place_of_the_file_s_budget(
    typed: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("hours: 1\n")
    assert command(monkeypatch, *typed, "--config", path, "--rho", 0.6) == 0
    assert bill(typed)["budget"] == {"unit": "rho", "amount": 0.6}
