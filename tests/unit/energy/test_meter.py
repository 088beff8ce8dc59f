"""Meters against counters that are made up: sums, wraparound, what is missing and why."""

import sys
import time
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from greentrainer.energy import Energy, counters, nvml, rapl, start_meter
from greentrainer.energy import meter as energy
from greentrainer.energy.meter import CPU_WATTS
from greentrainer.report import energy_rows
from tests.tiny import refusal

RANGE = 1_000_000_000


def zone(root: Path, number: str, name: str, microjoules: int = 0) -> Path:
    """A RAPL zone as the kernel shows it; returns its counter."""
    folder = root / f"intel-rapl:{number}"
    folder.mkdir(parents=True)
    (folder / "name").write_text(f"{name}\n")
    (folder / "max_energy_range_uj").write_text(f"{RANGE}\n")
    (folder / "energy_uj").write_text(f"{microjoules}\n")
    return folder / "energy_uj"


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counters, "visible_gpus", list)
    monkeypatch.setattr("greentrainer.energy.visible_gpus", list)


def test_packages_are_summed_and_their_parts_are_not(tmp_path: Path) -> None:
    packages = [zone(tmp_path, "0", "package-0", 5_000_000), zone(tmp_path, "1", "package-1")]
    others = [zone(tmp_path, n, name) for n, name in (("0:0", "core"), ("0:1", "dram"),
                                                      ("2", "psys"))]  # fmt: skip
    with start_meter(powercap=tmp_path) as meter:
        for file in (packages[0], *others):
            file.write_text("8000000\n")
        assert meter.joules() == 3.0
        packages[1].write_text("500000\n")
    assert meter.energy() == Energy(3.5, "RAPL", measured=True)
    packages[0].write_text("9000000\n")
    assert meter.joules() == 3.5  # it was stopped


def test_a_counter_that_starts_again_loses_nothing(tmp_path: Path) -> None:
    file = zone(tmp_path, "0", "package-0", RANGE - 1_000_000)
    with start_meter(powercap=tmp_path) as meter:
        file.write_text("2000000\n")
        assert meter.joules() == 3.0


def test_the_thread_reads_as_often_as_a_counter_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counters.Package, "period", 0.01)
    file = zone(tmp_path, "0", "package-0", 900_000_000)
    with start_meter(powercap=tmp_path) as meter:
        for value in (300_000_000, 900_000_000, 300_000_000):
            file.with_name("part").write_text(str(value))
            file.with_name("part").replace(file)
            time.sleep(0.2)
    assert meter.joules() == pytest.approx(1400.0)  # two times around: 400 + 600 + 400 J


def test_a_counter_that_may_not_be_read_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zone(tmp_path, "0", "package-0")
    read = Path.read_text

    def refused(path: Path, *args: Any, **kwargs: Any) -> str:
        if path.name == "energy_uj":
            raise PermissionError(13, "Permission denied", str(path))
        return read(path, *args, **kwargs)

    monkeypatch.setattr(Path, "read_text", refused)  # root may read whatever its mode
    found = rapl(tmp_path)
    assert not found.counters
    assert "may not be read" in found.missing
    assert "chmod a+r" in found.remedy
    with start_meter(powercap=tmp_path, watts=10) as meter:
        assert not meter.measured


def test_no_package_is_absent_and_not_forbidden(tmp_path: Path) -> None:
    found = rapl(tmp_path)
    assert "virtual machine" in found.missing
    assert found.remedy == ""


@pytest.mark.parametrize(("watts", "power", "how"), [(40.0, 40.0, "stated"),
                                                     (None, CPU_WATTS, "assumed")])  # fmt: skip
def test_an_estimate_is_power_times_seconds_and_says_so(
    tmp_path: Path, watts: float | None, power: float, how: str
) -> None:
    start = time.perf_counter()
    with start_meter(watts=watts, powercap=tmp_path) as meter:
        time.sleep(0.05)
    assert 0.05 * power <= meter.joules() <= power * (time.perf_counter() - start)
    assert meter.joules() == meter.joules()
    assert meter.source == f"estimate: {power:g} W {how}"
    assert not meter.measured


def test_an_estimate_can_be_asked_for(tmp_path: Path) -> None:
    zone(tmp_path, "0", "package-0")
    with start_meter("estimate", powercap=tmp_path) as meter:
        assert meter.source.startswith("estimate")


class Driver(ModuleType):
    """pynvml as it answers for two GPUs, of which the second has no energy counter."""

    class NVMLError(Exception):
        pass

    millijoules, milliwatts = 1000, 200_000

    def nvmlInit(self) -> None:
        pass

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        if uuid == "GPU-lost":
            raise self.NVMLError("Not Found")
        return uuid

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:
        if handle == "GPU-old":
            raise self.NVMLError("Not Supported")
        return self.millijoules

    def nvmlDeviceGetPowerUsage(self, handle: str) -> int:
        return self.milliwatts


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    fake = Driver("pynvml")
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    return fake


def see(monkeypatch: pytest.MonkeyPatch, *gpus: str) -> None:
    monkeypatch.setattr(counters, "visible_gpus", lambda: list(gpus))


def test_gpu_and_processor_are_summed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, driver: Driver
) -> None:
    see(monkeypatch, "GPU-new")
    file = zone(tmp_path, "0", "package-0")
    with start_meter(powercap=tmp_path) as meter:
        driver.millijoules += 7000
        file.write_text("1000000\n")
        assert meter.joules() == 8.0
    assert meter.source == "NVML and RAPL"


def test_power_is_integrated_where_there_is_no_counter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, driver: Driver
) -> None:
    see(monkeypatch, "GPU-old")
    with start_meter(powercap=tmp_path) as meter:
        start = time.perf_counter()
        time.sleep(0.25)
        spent = meter.joules()
        assert spent == pytest.approx(200 * (time.perf_counter() - start), rel=0.1)
    assert (meter.source, meter.measured) == ("NVML", True)


def test_a_gpu_that_cannot_be_asked_is_said_so(
    monkeypatch: pytest.MonkeyPatch, driver: Driver
) -> None:
    assert nvml().missing == "no GPU is visible"
    see(monkeypatch, "GPU-lost")
    assert "Not Found" in nvml().missing
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert nvml().remedy == "pip install nvidia-ml-py"


def test_codecarbon_is_refused_where_it_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energy, "find_spec", lambda name: None)
    with refusal("pip install 'greentrainer[energy]'"):
        start_meter("codecarbon")


class Tracker:
    """codecarbon's tracker, which calls its handlers when it is flushed."""

    def __init__(self, output_handlers: list[Any], output_methods: list[Any], **_: Any) -> None:
        assert output_methods == []  # no file
        self.handlers, self.energy_consumed = output_handlers, 0.0

    def start(self) -> None:
        self.energy_consumed = 0.001

    def flush(self) -> None:
        for handler in self.handlers:
            handler.out(self, None)

    def stop(self) -> None:
        self.energy_consumed = 0.002
        self.flush()


def test_codecarbon_is_an_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    fake: Any = ModuleType("codecarbon")
    fake.__spec__ = ModuleSpec("codecarbon", None)
    fake.OfflineEmissionsTracker = Tracker
    monkeypatch.setitem(sys.modules, "codecarbon", fake)
    with start_meter("codecarbon") as meter:
        assert meter.joules() == 3600.0
    assert meter.energy() == Energy(7200.0, "estimate by codecarbon", measured=False)


@pytest.mark.parametrize(
    ("source", "measured", "times"), [("RAPL", True, 0), ("estimate: 65 W stated", False, 1)]
)
def test_the_bill_says_what_is_an_estimate(source: str, measured: bool, times: int) -> None:
    bill = {
        "wall_seconds": 50.0, "energy_kwh": 0.01, "co2_grams": 4.8, "carbon_intensity": 480.0,
        "energy_source": source, "energy_measured": measured,
    }  # fmt: skip
    alone = energy_rows(bill, None)
    assert [row[1] for row in alone] == ["10", "4.8"]
    assert [row[0].count("estimate") for row in alone] == [times, times]
    beside = energy_rows(bill, {"estimated_seconds": 100.0})
    assert [row[2:] for row in beside] == [("20 (estimate)", "50.0%"), ("9.6 (estimate)", "50.0%")]
