"""Energy counters of the hardware: NVML for NVIDIA GPUs, RAPL for processor packages.

Each `read` gives the joules since the read before it (the first read is made when a counter is
made).  What is not there, or may not be read, is said in `Found.missing`, with what to change.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

POWERCAP = Path("/sys/class/powercap")
MICRO, MILLI = 1e-6, 1e-3


class Counter(Protocol):
    """Something that counts energy.  period: seconds between reads at most, for a right sum."""

    period: float

    def read(self) -> float:
        """Joules since the last read."""


@dataclass(frozen=True)
class Found:
    """The counters of one kind, NVML or RAPL.

    missing: why there are none.  remedy: what to change, where that helps.
    """

    name: str
    counters: Sequence[Counter] = ()
    missing: str = ""
    remedy: str = ""


class Package:
    """One processor package by RAPL, memory attached to it left out.

    The counter starts again at `max_energy_range_uj`, which takes minutes at full power.
    """

    period = 30.0

    def __init__(self, folder: Path) -> None:
        self._file = folder / "energy_uj"
        self._range = int((folder / "max_energy_range_uj").read_text())
        self._last = int(self._file.read_text())

    def read(self) -> float:
        """As `Counter.read`; right if the counter started again once at most since then."""
        now = int(self._file.read_text())
        spent = now - self._last
        if spent < 0:
            spent += self._range
        self._last = now
        return spent * MICRO


def rapl(root: Path = POWERCAP) -> Found:
    """The processor's packages under `root`."""
    zones = [zone for zone in sorted(root.glob("intel-rapl:*")) if _is_package(zone)]
    if not zones:
        why = f"no processor package in {root} (a virtual machine, or a processor without RAPL)"
        return Found("RAPL", missing=why)
    try:
        return Found("RAPL", [Package(zone) for zone in zones])
    except PermissionError:
        files = root / "intel-rapl:*" / "energy_uj"
        why = f"{zones[0] / 'energy_uj'} may not be read by this user"
        return Found("RAPL", missing=why, remedy=f"as root: chmod a+r {files}")


def _is_package(zone: Path) -> bool:
    """Whether a zone is a package: not a part of one (core, dram), nor the whole system (psys)."""
    return (zone / "name").read_text().startswith("package")


class GpuEnergy:
    """One GPU's own counter of millijoules since its driver was loaded."""

    period = 30.0

    def __init__(self, nvml: Any, handle: Any) -> None:
        self._nvml, self._handle = nvml, handle
        self._last = self._millijoules()

    def _millijoules(self) -> int:
        return int(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle))

    def read(self) -> float:
        """As `Counter.read`."""
        now = self._millijoules()
        spent, self._last = now - self._last, now
        return spent * MILLI


class GpuPower:
    """One GPU without such a counter: its power, integrated by the trapezoidal rule."""

    period = 0.1

    def __init__(self, nvml: Any, handle: Any) -> None:
        self._nvml, self._handle = nvml, handle
        self._last = time.perf_counter(), self._watts()

    def _watts(self) -> float:
        return float(self._nvml.nvmlDeviceGetPowerUsage(self._handle)) * MILLI

    def read(self) -> float:
        """As `Counter.read`."""
        now = time.perf_counter(), self._watts()
        (before, watts), self._last = self._last, now
        return (now[0] - before) * (watts + now[1]) / 2


def visible_gpus() -> list[str]:
    """Identifiers of the GPUs that this process sees, as NVML spells them."""
    import torch

    count = torch.cuda.device_count()
    return [f"GPU-{torch.cuda.get_device_properties(i).uuid}" for i in range(count)]


def nvml() -> Found:
    """The GPUs that this process sees, by the package nvidia-ml-py."""
    gpus = visible_gpus()
    if not gpus:
        return Found("NVML", missing="no GPU is visible")
    try:
        import pynvml
    except ImportError:
        remedy = "pip install nvidia-ml-py"
        return Found("NVML", missing="the package nvidia-ml-py is not installed", remedy=remedy)
    try:
        pynvml.nvmlInit()
        return Found("NVML", [_gpu_counter(pynvml, name) for name in gpus])
    except pynvml.NVMLError as error:
        return Found("NVML", missing=f"the driver does not tell ({error})")


def _gpu_counter(nvml: Any, name: str) -> Counter:
    handle = nvml.nvmlDeviceGetHandleByUUID(name)
    try:
        return GpuEnergy(nvml, handle)
    except nvml.NVMLError:  # GPUs before Volta have no counter
        return GpuPower(nvml, handle)
