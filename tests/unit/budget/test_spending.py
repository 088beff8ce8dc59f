"""The spending keeps a run at rho, whatever its batches turn out to cost."""

from hypothesis import given
from hypothesis import strategies as st

from greentrainer.budget import SpendingPlan
from greentrainer.budget.spending import PAYBACK_BATCHES

rhos = st.floats(0.35, 0.95)


@given(rhos, st.integers(20, 300), st.floats(0, 3))
def test_a_known_end_spreads_the_debt_evenly(rho: float, total: int, probe: float) -> None:
    spending, spent = SpendingPlan(rho, total), probe
    rates = []
    for batch in range(total):
        rates.append(spending.rate(batch, spent, float(batch), 1.0))
        spent += rates[-1]
    assert abs(spent - rho * total) < 1e-6 * total
    even = rates[: spending.horizon(0) - PAYBACK_BATCHES]
    assert max(even) - min(even) < 1e-6


@given(rhos, st.floats(0, 3))
def test_an_unknown_end_settles_soon(rho: float, probe: float) -> None:
    spending, spent = SpendingPlan(rho), probe
    for batch in range(40 * PAYBACK_BATCHES):
        spent += max(0.34, spending.rate(batch, spent, float(batch), 1.0))
    assert spent <= rho * 40 * PAYBACK_BATCHES * 1.001 or rho < 0.37


def test_selections_are_due_at_even_distances_and_never_after_the_end() -> None:
    spending = SpendingPlan(0.5, total_batches=10, every=4)
    made = [0]
    for batch in range(14):
        if spending.due(batch, made[-1]):
            made.append(batch)
    assert made == [0, 4, 8]
    assert spending.due(5, last=3)  # where only every third batch begins an optimizer step
    assert [spending.probes_left(batch) for batch in (0, 4, 8)] == [2, 1, 0]


def test_small_misses_are_let_be_except_at_the_end() -> None:
    spending = SpendingPlan(0.5, total_batches=1000)
    assert not spending.off_course(0, rate=0.5, current=0.5005)
    assert spending.off_course(0, rate=0.5, current=0.52)
    assert spending.off_course(990, rate=0.5, current=0.5005)
    assert spending.off_course(0, rate=0.5, current=0.4)
