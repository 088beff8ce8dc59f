"""Long work tells how far it has come: lines in a log, a bar on a terminal, else nothing."""

import io
import time
from collections.abc import Iterator

import pytest
from rich.console import Console

from greentrainer.records import over, progress, tell, working
from greentrainer.records.progress import Bars, Lines, Work


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is said where a line is due every 20 ms."""
    lines: list[str] = []
    monkeypatch.setattr(progress, "_show", Lines(lines.append, every=0.02))
    return lines


def waited(lines: list[str], count: int) -> bool:
    """Whether so many lines come within ten seconds."""
    end = time.monotonic() + 10
    while len(lines) < count and time.monotonic() < end:
        time.sleep(0.005)
    return len(lines) >= count


def test_lines_come_also_while_one_part_takes_long_and_say_how_far(said: list[str]) -> None:
    with working("training", 4) as work:
        assert waited(said, 1)
        assert said[0].startswith("training  0:00 so far")
        work.to(1, "loss 2.5")
        before = len(said)
        assert waited(said, before + 2)
    assert "training 1/4  loss 2.5  0:00 so far, about 0:00 left" in said
    assert said[-1].startswith("training 1/4  loss 2.5  in ")
    time.sleep(0.05)
    assert said[-1].startswith("training 1/4  loss 2.5  in "), "the thread has ended"


def test_short_work_is_not_worth_a_line_unless_it_is_lasting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lines: list[str] = []
    monkeypatch.setattr(progress, "_show", Lines(lines.append, every=60))
    assert list(over([1, 2], "evaluating")) == [1, 2]
    with working("training", 2, lasting=True) as work:
        work.to(2)
    assert [line.partition("  ")[0] for line in lines] == ["training 2/2"]


def test_parts_count_when_the_next_is_asked_for_and_a_break_ends_the_work(said: list[str]) -> None:
    def parts() -> Iterator[int]:
        yield from range(5)

    for part in over(parts(), "generating", 5):
        if part == 2:
            assert waited(said, len(said) + 2)
            break
    assert any(line.startswith("generating 2/5  ") for line in said)


@pytest.mark.parametrize(
    ("seconds", "text"), [(5, "0:05"), (65, "1:05"), (3600, "1:00:00"), (7325, "2:02:05")]
)
def test_a_clock_reads_as_people_write_it(
    seconds: int, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = Work("x", 8, done=2, begun=0.0)
    monkeypatch.setattr(time, "monotonic", lambda: float(seconds))
    assert f"{text} so far" in work.line()
    left = progress._clock(3 * seconds)
    assert f"about {left} left" in work.line()


def test_a_terminal_has_one_bar_and_work_inside_of_work_none() -> None:
    out = io.StringIO()
    shown = Bars(Console(file=out, force_terminal=True, width=100))
    outer, inner = Work("training", 2, lasting=True), Work("evaluating", 3)
    with shown(outer):
        outer.to(2, "loss 1.5")
        with shown(inner):
            inner.to(1)
    assert "loss 1.5" in out.getvalue()
    assert "evaluating" not in out.getvalue()


@pytest.mark.parametrize(
    ("console", "kind"),
    [
        (Console(file=io.StringIO()), Lines),
        (Console(file=io.StringIO(), force_terminal=True), Bars),
        (Console(quiet=True), type(progress.silent)),
    ],
)
def test_a_command_s_console_decides(
    console: Console, kind: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "_show", progress.silent)
    tell(console)
    assert isinstance(progress._show, kind)


def test_a_library_is_silent(capfd: pytest.CaptureFixture[str]) -> None:
    list(over(range(3), "evaluating"))
    assert capfd.readouterr() == ("", "")
