"""Energy of a stretch of work, from the hardware's counters where there are any.

    with start_meter() as meter:
        work()
    print(meter.joules(), meter.source)

The counters are those of `greentrainer.counters`.  They count all that the device does, also for
other processes.  Where there are none the figure is an estimate, and says so: stated power times
elapsed seconds.
"""

import logging
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Self

from greentrainer.energy.counters import POWERCAP, Found, nvml, rapl, visible_gpus

Kind = Literal["auto", "codecarbon", "estimate"]
JOULES_PER_KWH = 3.6e6
WORLD_INTENSITY = 480.0
"""Grams of CO2 a kWh: the world's average of 2023 (Ember, Global Electricity Review 2024)."""
CPU_WATTS = 65.0
"""Power that an estimate assumes of the processor: what desktop processors are designed for."""
GPU_WATTS = 350.0
"""And of each GPU that the process sees: the board power of PCIe cards for data centres."""


@dataclass(frozen=True)
class Energy:
    """What a stretch of work took, in joules.  source: what says so.  measured: no estimate."""

    joules: float
    source: str
    measured: bool

    @property
    def kwh(self) -> float:
        """In kilowatt hours."""
        return self.joules / JOULES_PER_KWH


UNMETERED = Energy(0.0, "not metered", measured=False)
"""Of work that no meter ran over."""


class Meter(ABC):
    """Counts energy from when it was made until it is stopped.

    source: "NVML", "RAPL", "NVML and RAPL", "codecarbon", "estimate: 65 W stated".
    measured: False for an estimate.
    """

    source: str
    measured: bool

    @abstractmethod
    def joules(self) -> float:
        """Since it was started, or until it was stopped."""

    @abstractmethod
    def stop(self) -> None:
        """End counting; once."""

    def energy(self) -> Energy:
        """What was counted so far."""
        return Energy(self.joules(), self.source, self.measured)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        self.stop()


class Counted(Meter):
    """The sum of hardware counters, read by a thread as often as they need it."""

    measured = True

    def __init__(self, found: Sequence[Found]) -> None:
        self.source = " and ".join(one.name for one in found)
        self._counters = [counter for one in found for counter in one.counters]
        self._period = min(counter.period for counter in self._counters)
        self._joules, self._lock, self._end = 0.0, threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def joules(self) -> float:
        """As `Meter.joules`."""
        if not self._end.is_set():
            self._read()
        return self._joules

    def stop(self) -> None:
        """As `Meter.stop`."""
        self._end.set()
        self._thread.join()
        self._read()

    def _read(self) -> None:
        with self._lock:
            self._joules += sum(counter.read() for counter in self._counters)

    def _watch(self) -> None:
        while not self._end.wait(self._period):
            self._read()


class Estimate(Meter):
    """Power times elapsed seconds.  watts: of all devices together; the assumed ones if None."""

    measured = False

    def __init__(self, watts: float | None = None) -> None:
        self.watts = assumed_watts() if watts is None else watts
        how = "assumed" if watts is None else "stated"
        self.source = f"estimate: {self.watts:g} W {how}"
        self._start, self._end = time.perf_counter(), 0.0

    def joules(self) -> float:
        """As `Meter.joules`."""
        return self.watts * ((self._end or time.perf_counter()) - self._start)

    def stop(self) -> None:
        """As `Meter.stop`."""
        self._end = time.perf_counter()


def assumed_watts() -> float:
    """Of the processor and the visible GPUs, where nobody stated it."""
    return CPU_WATTS + GPU_WATTS * len(visible_gpus())


class Codecarbon(Meter):
    """The package codecarbon, offline and silent.  It models what it cannot read: an estimate."""

    source, measured = "estimate by codecarbon", False

    def __init__(self) -> None:
        from codecarbon import OfflineEmissionsTracker

        logging.getLogger("codecarbon").setLevel(logging.CRITICAL)
        self._kwh: float | None = None
        self._tracker: Any = OfflineEmissionsTracker(
            country_iso_code="USA",  # its grams are not used
            log_level="critical",
            output_methods=[],
            output_handlers=[self],
            allow_multiple_runs=True,
        )
        self._tracker.start()
        if not self._flushed():
            raise ValueError("codecarbon did not start: use meter auto or estimate")

    def _flushed(self) -> bool:
        self._tracker.flush()  # calls `out`
        return self._kwh is not None

    def out(self, total: Any, delta: Any) -> None:
        """Called by the tracker, with what it counted so far."""
        self._kwh = total.energy_consumed

    live_out = out

    def exit(self) -> None:
        """Called by the tracker when it stops."""

    def joules(self) -> float:
        """As `Meter.joules`."""
        if self._tracker is not None:
            self._tracker.flush()
        return (self._kwh or 0.0) * JOULES_PER_KWH

    def stop(self) -> None:
        """As `Meter.stop`."""
        self._tracker.stop()
        self._tracker = None


def require_meter(kind: Kind) -> None:
    """Raise ValueError, in one line, for codecarbon where it is not installed."""
    if kind == "codecarbon" and find_spec("codecarbon") is None:
        raise ValueError("meter codecarbon needs a package: pip install 'greentrainer[energy]'")


def start_meter(
    kind: Kind = "auto", watts: float | None = None, powercap: Path = POWERCAP
) -> Meter:
    """A meter that has started.

    kind: auto reads the hardware's counters, and estimates where there are none.
    watts: that an estimate states for all devices together.
    powercap: where RAPL is looked for.

    Raises ValueError as `require_meter` does.
    """
    require_meter(kind)
    if kind == "codecarbon":
        return Codecarbon()
    found = [one for one in (nvml(), rapl(powercap)) if one.counters] if kind == "auto" else []
    return Counted(found) if found else Estimate(watts)
