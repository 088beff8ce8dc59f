"""What a run uses up besides FLOPs: seconds, joules, and grams of CO2.

The grid's intensity is a number, or a schedule that says from when on it is what.
"""

import csv
import math
import re
import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from greentrainer.energy.meter import JOULES_PER_KWH, WORLD_INTENSITY, Estimate


@dataclass(frozen=True)
class Used:
    """Seconds, joules, and grams of CO2."""

    seconds: float = 0.0
    joules: float = 0.0
    grams: float = 0.0

    @property
    def kwh(self) -> float:
        """Its joules in kilowatt-hours."""
        return self.joules / JOULES_PER_KWH


NOTHING = Used()


@dataclass(frozen=True)
class Intensity:
    """Grams of CO2 a kWh over time: `grams[i]` from `times[i]` (seconds since 1970) on.

    Before the first time it is the first value.
    """

    times: tuple[float, ...] = (0.0,)
    grams: tuple[float, ...] = (WORLD_INTENSITY,)

    def at(self, when: float) -> float:
        """At one time."""
        return self.grams[max(0, bisect_right(self.times, when) - 1)]

    def mean(
        self, start: float, seconds: float, of: Callable[[float], float] = lambda grams: grams
    ) -> float:
        """The mean over a stretch of time; `of`: of what is made of each value."""
        end = start + seconds
        inside = [t for t in self.times if start < t < end]
        edges = [start, *inside, end]
        if seconds <= 0 or not inside:
            return of(self.at(start))
        parts = pairwise(edges)
        return sum(of(self.at(a)) * (b - a) for a, b in parts) / seconds

    def lasts(self, start: float, amount: float) -> float:
        """Seconds until the intensity's integral over time comes to an amount; below 0 in debt."""
        if amount <= 0:
            return amount / self.at(start)
        now = start
        for edge in (t for t in self.times if t > start):
            piece = self.at(now) * (edge - now)
            if piece >= amount:
                break
            amount, now = amount - piece, edge
        return now - start + amount / self.at(now)

    def tilt(self, start: float, seconds: float) -> float:
        """By how much more than on average to spend now, where `seconds` are to come.

        In inverse proportion to the intensity: what is spent in all stays the same, and as more is
        spent where less is emitted, the emission is at most that of even spending (Chebyshev's sum
        inequality).
        """
        return (1 / self.at(start)) / self.mean(start, seconds, lambda grams: 1 / grams)


def read_schedule(path: Path) -> Intensity:
    """The schedule in a CSV file of two columns: time (ISO 8601 or seconds) and gCO2/kWh.

    A first line that holds no number is a heading.  A time without a zone is local.  Raises
    ValueError, in one line, for a file that cannot be read or holds something else.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        rows = [row for row in csv.reader(text.splitlines()) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"cannot read the carbon schedule {path}: {error}") from None
    found = [
        _line(path, number, row)
        for number, row in enumerate(rows, 1)
        if number > 1 or not _is_heading(row)
    ]
    if not found or not all(math.isfinite(t) and 0 < g < math.inf for t, g in found):
        raise ValueError(f"{path} needs lines of a time and grams of CO2 a kWh above 0")
    times, values = zip(*sorted(found), strict=True)
    return Intensity(times, values)


def _is_heading(row: Sequence[str]) -> bool:
    """Whether a first line names its columns: the second holds no number."""
    return len(row) == 2 and re.search(r"\d", row[1].replace("CO2", "")) is None


def _line(path: Path, number: int, row: Sequence[str]) -> tuple[float, float]:
    try:
        when, grams = row
        return _seconds(when.strip()), float(grams)
    except ValueError:
        raise ValueError(
            f"{path}, line {number}: give a time (ISO 8601) and grams of CO2 a kWh, "
            f"not {','.join(row)[:60]!r}"
        ) from None


def _seconds(text: str) -> float:
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return float(text)


@dataclass
class Consumption:
    """What has been used since this was made, and before it by the run that is resumed.

    joules: as a meter shows since about then.  intensity: of the grid, now and to come.

    Of several processes each counts its own; `agree` adds up, and between two calls of it time
    stands still for all that asks what was used `so_far`: so all see the same.
    """

    joules: Callable[[], float] = field(default_factory=lambda: Estimate().joules)
    intensity: Intensity = field(default_factory=Intensity)
    clock: Callable[[], float] = time.time
    before: Used = NOTHING
    _grams: float = 0.0
    _agreed: tuple[Used, float] | None = None

    def __post_init__(self) -> None:
        self._start, self._shown, self._at = time.monotonic(), self.joules(), self.clock()
        self._zero = self._shown

    def used(self) -> Used:
        """So far.  Between two calls power is taken as constant."""
        shown, now = self.joules(), self.clock()
        spent = (shown - self._shown) / JOULES_PER_KWH
        self._grams += spent * self.intensity.mean(self._at, now - self._at)
        self._shown, self._at = shown, now
        return Used(
            self.before.seconds + time.monotonic() - self._start,
            self.before.joules + shown - self._zero,
            self.before.grams + self._grams,
        )

    def agree(self, every: Callable[[Any], Sequence[Any]]) -> None:
        """Joules and grams of all processes together, seconds of the slowest.

        every: tells a value to all; what they have, in the order of their ranks.
        """
        found = every((self.used(), self.clock()))
        used = [one for one, _ in found]
        together = Used(
            max(one.seconds for one in used),
            sum(one.joules for one in used),
            sum(one.grams for one in used),
        )
        self._agreed = together, max(when for _, when in found)

    def so_far(self) -> Used:
        """What was used: as the processes last agreed, of one alone up to now."""
        return self.used() if self._agreed is None else self._agreed[0]

    def go_on(self, used: Used, first: bool = True) -> None:
        """After the run that had used so much.  first: of several processes, which add it up."""
        self.before = used if first else Used(used.seconds)

    @property
    def moves(self) -> bool:
        """Whether the intensity is still to change."""
        return self.intensity.times[-1] > self._now()

    def lasts(self, amount: float) -> float:
        """Seconds from now in which the intensity's integral comes to an amount."""
        return self.intensity.lasts(self._now(), amount)

    def tilt(self, seconds: float) -> float:
        """By how much more than on average to spend now, where so many seconds are to come."""
        return self.intensity.tilt(self._now(), seconds)

    def _now(self) -> float:
        return self.clock() if self._agreed is None else self._agreed[1]
