"""What a run uses up: intensities over time, and the sums."""

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greentrainer.energy import Consumption, Intensity, Used, read_schedule
from tests.tiny import refusal

DAY = Intensity((0.0, 100.0, 300.0), (200.0, 400.0, 100.0))


def test_an_intensity_holds_until_the_next() -> None:
    assert [DAY.at(t) for t in (-5, 0, 99, 100, 299, 300, 9999)] == [
        200, 200, 200, 400, 400, 100, 100,
    ]  # fmt: skip
    assert DAY.mean(50, 100) == 300
    assert DAY.mean(0, 400) == pytest.approx((200 * 100 + 400 * 200 + 100 * 100) / 400)
    assert DAY.mean(120, 0) == 400


@given(st.floats(-50, 400), st.floats(0.1, 500))
def test_what_lasts_so_long_is_used_up_then(start: float, seconds: float) -> None:
    amount = DAY.mean(start, seconds) * seconds
    assert DAY.lasts(start, amount) == pytest.approx(seconds)
    assert DAY.lasts(start, -amount) < 0


@given(
    st.lists(st.tuples(st.floats(1, 50), st.floats(10, 900)), min_size=1, max_size=8),
    st.floats(0, 40),
    st.floats(1, 400),
)
def test_tilted_spending_is_the_same_in_all_and_emits_no_more(
    steps: list[tuple[float, float]], start: float, seconds: float
) -> None:
    """Against a plain sum over the pieces of a schedule."""
    times, now = [0.0], 0.0
    for span, _ in steps[:-1]:
        now += span
        times.append(now)
    intensity = Intensity(tuple(times), tuple(grams for _, grams in steps))
    edges = sorted({start, start + seconds, *(t for t in times if start < t < start + seconds)})
    pieces = [(b - a, intensity.at(a), intensity.tilt(start, seconds)) for a, b in pairwise(edges)]
    inverse = sum(span / grams for span, grams, _ in pieces) / seconds
    rates = [(1 / grams) / inverse for _, grams, _ in pieces]
    assert rates[0] == pytest.approx(pieces[0][2])
    spent = sum(rate * span for rate, (span, *_) in zip(rates, pieces, strict=True))
    assert spent == pytest.approx(seconds)
    emitted = sum(r * span * grams for r, (span, grams, _) in zip(rates, pieces, strict=True))
    assert emitted <= sum(span * grams for span, grams, _ in pieces) * (1 + 1e-9)


def test_grams_follow_the_schedule_and_a_resumed_run_goes_on() -> None:
    joules, now = [0.0], [0.0]
    used = Consumption(lambda: joules[0], DAY, lambda: now[0])
    joules[0], now[0] = 3.6e6, 100.0
    assert used.used().grams == pytest.approx(200)
    joules[0], now[0] = 2 * 3.6e6, 300.0
    assert used.used().grams == pytest.approx(600)
    assert used.used().kwh == pytest.approx(2)
    later = Consumption(lambda: 0.0, DAY)
    later.go_on(Used(10.0, 3.6e6, 77.0))
    found = later.used()
    assert found.seconds >= 10
    assert (found.kwh, found.grams) == (1, 77)


def test_a_schedule_is_read(tmp_path: Path) -> None:
    path = tmp_path / "grid.csv"
    path.write_text("\ufefftime,gCO2/kWh\n2026-01-01T01:00:00+00:00,300\n1767225600,150\n")
    assert read_schedule(path) == Intensity((1767225600.0, 1767229200.0), (150.0, 300.0))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "needs lines"),
        ("time,grams\n", "needs lines"),
        ("0,100\n1,none\n", "line 2"),
        ("0,100\nyesterday,100\n", "line 2"),
        ("0,100\n1,2,3\n", "line 2"),
        ("0,0\n", "above 0"),
        ("1970-01-01,1x2\n2028-01-01,3\n", "line 1"),
        ("nan,5\n", "above 0"),
        ("0,nan\n", "above 0"),
    ],
)
def test_another_file_is_refused(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "grid.csv"
    path.write_text(text)
    with refusal(says):
        read_schedule(path)
    with refusal("cannot read"):
        read_schedule(tmp_path / "missing.csv")
