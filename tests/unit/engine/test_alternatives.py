"""Which step to make how often: against every set of tensors and every number of steps."""

import math
from collections.abc import Iterator
from itertools import combinations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from greentrainer.engine.alternatives import Rows, Side, progress, weighed
from greentrainer.select import select
from greentrainer.types import CostGraph, Selection
from tests.graphs import small_graphs, small_instances

Instance = tuple[CostGraph, dict[str, float], int]


def value_of(importance: dict[str, float], names: tuple[str, ...]) -> float:
    return sum(importance[name] for name in names)


def side_of(graph: CostGraph, importance: dict[str, float], tail: int | None = None) -> Side:
    """A side whose sets are judged by the rows that chose them."""
    forward = graph.forward_flops

    def best(limit: float) -> tuple[Selection, float, float] | None:
        try:
            found = select(graph, importance, limit - forward)
        except ValueError:
            return None
        return found, forward + found.backward_flops, value_of(importance, found.names)

    everything = sum(importance.values())
    return Side(
        tail,
        full=forward + graph.full_backward_flops,
        least=forward + min(graph.closure_flops.values()),
        everything=everything,
        best=best,
    )


def every_way(graph: CostGraph, importance: dict[str, float]) -> Iterator[tuple[float, float]]:
    """Cost and worth of every set of tensors."""
    names = graph.tensors
    for size in range(1, len(names) + 1):
        for chosen in combinations(names, size):
            cost = graph.forward_flops + graph.backward_flops(chosen)
            yield cost, value_of(importance, chosen)


rows_to_come = st.builds(
    Rows,
    steps=st.integers(1, 40).map(float),
    fresh=st.integers(1, 40).map(float),
    again=st.sampled_from([0.0, 0.3, 1.0]),
)


@given(st.lists(small_instances(small_graphs()), min_size=1, max_size=2), rows_to_come,
       st.floats(0.2, 60))  # fmt: skip
def test_as_good_as_the_best_of_all(
    instances: list[Instance], rows: Rows, whole_steps: float
) -> None:
    instances = [one for one in instances if any(v > 0 for v in one[1].values())]
    assume(instances)
    sides = [side_of(graph, importance, n) for n, (graph, importance, _) in enumerate(instances)]
    budget = whole_steps * sides[0].full
    able = [
        progress(cost, value, rows, budget)[1]
        for graph, importance, _ in instances
        for cost, value in every_way(graph, importance)
        if budget / cost >= min(1.0, rows.steps) and value > 0
    ]
    if not able:
        return
    optimum = max(able)
    found = weighed(sides, rows, budget)[0]
    assert found.steps * found.cost <= budget * (1 + 1e-12)
    assert found.steps <= rows.steps
    assert found.progress >= optimum * (1 - 1e-3) - 1e-9


WHOLE, TAIL = 100.0, 44.0


def two(value: float, tail: float = TAIL) -> list[Side]:
    """All tensors through a short tail, and the whole step of worth 1."""
    return [Side(8, tail, 40.0, value), Side(None, WHOLE, 40.0, 1.0)]


@pytest.mark.parametrize(
    ("value", "budget", "tail", "steps"),
    [
        (0.96, 45 * WHOLE, 8, 100),  # a tail that is worth nearly as much
        (0.40, 45 * WHOLE, None, 45),  # one that is worth less than it costs: an early stop
        (0.96, 99 * WHOLE, None, 99),  # where nearly all whole steps are paid for
        (0.96, 200 * WHOLE, None, 100),  # and where more than all are
        (0.96, 20 * WHOLE, 8, 20 * WHOLE / TAIL),
    ],
)
def test_what_is_taken(value: float, budget: float, tail: int | None, steps: float) -> None:
    found = weighed(two(value), Rows(100, 100), budget)[0]
    assert found.tail == tail
    assert found.steps == pytest.approx(steps)


@pytest.mark.parametrize(("again", "tail", "steps"), [(1.0, 8, 135 / 0.44), (0.0, None, 100)])
def test_rows_seen_again_count_for_what_they_are_worth(
    again: float, tail: int | None, steps: float
) -> None:
    """Three passes of 100 steps, and 135 whole steps' worth: one whole pass, or three short."""
    rows = Rows(300, 100, again)
    found = weighed(two(0.96), rows, 135 * WHOLE)[0]
    assert found.tail == tail
    assert found.steps == pytest.approx(min(300, steps))


@given(st.floats(0.05, 1.5), st.floats(0.05, 1.0), st.floats(0.3, 1.2), rows_to_come)
def test_never_worth_less_than_full_fine_tuning_stopped_early(
    share: float, value: float, cost: float, rows: Rows
) -> None:
    budget = share * rows.steps * WHOLE
    assume(budget >= WHOLE)
    _, early = progress(WHOLE, 1.0, rows, budget)
    found = weighed(two(value, cost * WHOLE), rows, budget)[0]
    assert found.progress >= early
    assert found.steps * found.cost <= budget * (1 + 1e-12)


def test_a_set_chosen_by_its_own_noise_is_judged_by_others() -> None:
    """By the rows that chose it the set is worth as much as everything, by others a tenth."""
    names = Selection(("a",), 1.0, 5, 5.0)
    side = Side(None, WHOLE, 40.0, 1.0, best=lambda limit: (names, 50.0, 1.0),
                judged=lambda chosen: 0.1)  # fmt: skip
    first, *others = weighed([side], Rows(100, 100), 50 * WHOLE)
    assert first.selection is None
    assert [one.value for one in others] == [0.1]


def test_of_equal_ones_the_first_side_s_is_taken() -> None:
    sides = [Side(0, WHOLE, 40.0, 1.0), Side(None, WHOLE, 40.0, 1.0)]
    assert weighed(sides, Rows(10, 10), 5 * WHOLE)[0].tail == 0


def test_less_than_a_step_is_refused_with_what_a_step_takes() -> None:
    with pytest.raises(ValueError, match="pays for no step"):
        weighed(two(0.9), Rows(10, 10), 30.0)


def test_progress_is_linear_in_what_is_worth_it() -> None:
    rows = Rows(30, 10, 0.5)
    assert [progress(1.0, 2.0, rows, budget)[1] for budget in (5, 10, 20, 30, 99)] == [
        10.0, 20.0, 30.0, 40.0, 40.0,
    ]  # fmt: skip
    assert math.isclose(Rows(30, 10, 0.0).useful, 10)


def test_a_set_that_costs_all_that_is_left_is_found() -> None:
    """Nothing dearer is paid for, and no cheaper limit finds it."""

    def best(limit: float) -> tuple[Selection, float, float] | None:
        if limit < 11:
            return None
        cost, value = (11.0, 2.0) if limit < 11.001 else (11.001, 3.0)
        return Selection((f"{cost}",), value, 5, 5.0), cost, value

    side = Side(None, 22.0, 10.0, 1.5, best=best)
    found = weighed([side], Rows(2, 1, 0.3), 11.0)[0]
    assert (found.cost, found.steps, found.progress) == (11.0, 1.0, 2.0)
