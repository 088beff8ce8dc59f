"""What several processes agree on, as far as one process can tell."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from greentrainer.budget import Budget, Clock, slowest
from greentrainer.config import RunConfig
from greentrainer.energy import Consumption, Used
from greentrainer.hf.probe_batches import ProbeBatches
from greentrainer.model import Alone
from greentrainer.run.arguments import steps_of
from greentrainer.run.interrupt import StopRequest
from greentrainer.run.reference import EpochOrder
from greentrainer.run.together import metered
from greentrainer.run.vigil import SILENT, Vigil
from greentrainer.tasks import Encoded


def examples(count: int) -> list[Encoded]:
    return [Encoded((1,) * (3 + i % 4), (1,) * (3 + i % 4)) for i in range(count)]


@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("rows", [1, 7, 24, 25])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_steps_are_those_of_all_processes(count: int, rows: int, accumulate: int) -> None:
    order = EpochOrder(examples(rows), 3, seed=1)
    dealt, steps = order.dealt(count), order.steps(count, accumulate)
    config = RunConfig(processes=count, batch_size=3, accumulate=accumulate, epochs=2)
    assert len(steps) == steps_of(config, rows) / 2
    assert len({len(batches) for batches in dealt}) == 1  # none waits for another
    assert {row for batches in dealt for one in batches for row in one} == set(range(rows))
    assert [rows for step in steps for rows in step] == [
        batches[i] for i in range(len(dealt[0])) for batches in dealt
    ]
    if count > 1:
        assert all(len(one) == 3 for batches in dealt for one in batches)
    else:
        assert dealt == [order.groups()]


class Loader:
    """As much of a loader as `ProbeBatches` looks at."""

    def __init__(self) -> None:
        self.dataset = [{"row": i} for i in range(40)]
        self.collate_fn = lambda rows: {"rows": [row["row"] for row in rows]}
        self.batch_size = 2


@pytest.mark.parametrize("block", [1, 2])
def test_processes_probe_what_one_would(block: int) -> None:
    made = [ProbeBatches(Loader(), "0/0", "cpu", 2, rank, 2) for rank in (0, 1)]  # type: ignore[arg-type]
    alone = ProbeBatches(Loader(), "0/0", "cpu", 2)  # type: ignore[arg-type]
    parts = [list(one.draw(3, 4, block)) for one in made]
    wanted = list(alone.draw(3, 4))
    if block == 1:
        assert [parts[0][0], parts[1][0], parts[0][1], parts[1][1]] == wanted
    else:
        assert [*parts[0], *parts[1]] == wanted
    assert [len(list(one.draw(3, 1, block))) for one in made] == [block, block]
    assert made[0].sample() == made[1].sample() == alone.sample() == next(alone.draw(0, 1))


def test_what_was_used_adds_up_and_stands_still() -> None:
    clock = iter(range(100, 200))
    one = Consumption(joules=lambda: 5.0, clock=lambda: float(next(clock)))
    other = Used(1e6, 7.0, 3.0), 1e9

    def every(value: Any) -> Sequence[Any]:
        return [value, other]

    one.agree(every)
    told = one.so_far()
    assert told == Used(1e6, 7.0, 3.0)
    assert one.so_far() is told
    one.go_on(Used(60.0, 9.0, 2.0), first=False)
    assert one.used().seconds >= 60
    assert one.used().joules == 0.0  # the first process brings them


def test_the_clock_is_that_of_the_slowest() -> None:
    fast = Clock(1.0, 2.0, 3.0, 4.0, 5.0, tokens=6, watts=10.0)
    slow = Clock(1.5, 1.0, 3.0, 5.0, 4.0, tokens=6, watts=20.0)
    assert slowest([fast, slow]) == Clock(1.5, 2.0, 3.0, 5.0, 5.0, tokens=6, watts=30.0)
    assert slowest([fast]) == fast


@pytest.mark.parametrize("count", [1, 2])
def test_flops_are_shared_out(count: int) -> None:
    from greentrainer.budget import SpendingPlan
    from greentrainer.records import Ledger
    from tests.graphs import transformer

    budget = Budget("flops", 1e6, whole_flops=4_000_000)
    plan = SpendingPlan(1.0, 10)
    terms = budget.terms(None, transformer(2), plan, Consumption(), Ledger(), processes=count)
    assert terms.cost_unit.total == 1e6 / count
    assert terms.cost_unit.whole == 4e6 / count
    assert terms.share == 0.25
    assert terms.amount_for(0.5) == 2e6


def test_energy_is_counted_once_on_each_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    config = RunConfig(watts=100.0)
    assert metered(config) == ("auto", 100.0)
    for name, value in {"RANK": 3, "WORLD_SIZE": 4, "LOCAL_RANK": 1, "LOCAL_WORLD_SIZE": 2}.items():
        monkeypatch.setenv(name, str(value))
    assert metered(config) == ("estimate", 0.0)
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert metered(config) == ("auto", 50.0)


class Second(Alone):
    """Of three processes the second."""

    count, rank = 3, 1


def test_the_one_that_stands_still_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    watch = Vigil(Second(), 8.0, lambda _reason: None)
    reasons = []
    for second in range(12):
        now[0] = float(second)
        reasons.append(watch.reason({0: (second, 7), 1: (second, 7), 2: (second, 6)}))
    assert reasons[:9] == [None] * 9
    assert reasons[9] == "process 2 stands still for more than 8 seconds"


def test_nobody_is_named_where_all_work_or_all_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    watch = Vigil(Second(), 8.0, lambda _reason: None)
    for second in range(100):
        now[0] = float(second)
        assert watch.reason(dict.fromkeys(range(3), (second, 7))) is None
    for second in range(100, 200):  # it is this one that the others wait for
        now[0] = float(second)
        assert watch.reason({0: (second, 9), 1: (second, 8), 2: (second, 9)}) is None


def test_one_that_gives_no_sign_has_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    watch = Vigil(Second(), 1e9, lambda _reason: None)
    found = []
    for second in range(40):
        now[0] = float(second)
        found.append(watch.reason({0: (second, 1), 1: (second, 1), 2: (min(second, 3), 1)}))
    silent = int(SILENT)
    assert found[3 + silent] is None
    assert found[4 + silent] == "process 2 has gone"


def test_a_signal_that_is_handed_on_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    told = []
    stop = StopRequest(lambda: told.append(1))
    stop._note(15, None)
    stop._note(15, None)
    assert stop.made
    assert told == [1]
    monkeypatch.delenv("RANK")
    alone = StopRequest()
    alone._note(15, None)
    with pytest.raises(KeyboardInterrupt):
        alone._note(15, None)


def test_config_takes_a_number_or_auto(tmp_path: Path) -> None:
    from greentrainer.config import read

    assert read(None, {"processes": "2"}).count == 2
    assert read(None, {"processes": "auto"}).count == 1
    with pytest.raises(ValueError, match="processes"):
        read(None, {"processes": "0"})
