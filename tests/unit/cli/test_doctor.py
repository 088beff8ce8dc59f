"""What `greentrainer doctor` finds, says to change, and leaves as its exit code."""

import json
import sys
import tomllib
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from greentrainer import cli
from greentrainer.cli import doctor
from greentrainer.cli.doctor import Finding
from greentrainer.energy import Found

PROJECT = Path(__file__).parents[3] / "pyproject.toml"


def command(monkeypatch: pytest.MonkeyPatch, *words: Any) -> int:
    """Type `greentrainer doctor ...`; its exit code."""
    monkeypatch.setattr(sys, "argv", ["greentrainer", "doctor", *map(str, words)])
    with pytest.raises(SystemExit) as leave:
        cli.main()
    return int(leave.value.code or 0)


def named(findings: list[Finding], name: str) -> Finding:
    return next(finding for finding in findings if finding.name.startswith(name))


def test_json_holds_every_section(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert command(monkeypatch, "--json", "--output-dir", tmp_path / "run") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["able"]
    sections = dict.fromkeys(finding["section"] for finding in told["findings"])
    assert list(sections) == ["versions", "devices", "dtypes", "kernels", "allocator", "energy",
                              "disk", "extras"]  # fmt: skip
    assert not (tmp_path / "run").exists()


def test_the_table_says_what_to_change(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(doctor, "find_spec", lambda name: None)
    assert command(monkeypatch, "--output-dir", tmp_path) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "note    energy: pip install 'greentrainer[energy]'" in lines
    assert "note    tensorboard: pip install tensorboard" in lines


def test_it_says_how_large_a_model_may_be() -> None:
    found = doctor.fitting(24e9)
    assert "full 1.2, --memory auto 6.4, LoRA 4.8 billion" in found.value
    assert named(doctor.devices(), "models that fit").level == "ok"


def test_a_folder_that_cannot_be_written_is_fatal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    assert command(monkeypatch, "--output-dir", tmp_path / "file" / "run") == 1
    assert "choose another --output-dir" in capsys.readouterr().out


@pytest.mark.parametrize(("found", "level"), [("2.11.0", "ok"), ("2.9.1+cpu", "problem"),
                                              ("3.0", "ok"), (None, "fatal")])  # fmt: skip
def test_versions_below_the_supported_are_flagged(
    monkeypatch: pytest.MonkeyPatch, found: str | None, level: str
) -> None:
    def version(name: str) -> str:
        if name == "torch" and found is None:
            raise PackageNotFoundError(name)
        return found or "9.9"

    monkeypatch.setattr(doctor, "REQUIRED", {"torch": "2.11"})
    monkeypatch.setattr(doctor, "version", version)
    finding = named(doctor.versions(), "torch")
    assert finding.level == level
    assert ("pip install 'torch>=2.11'" in finding.advice) == (level != "ok")
    if found is None:
        assert not doctor.able(doctor.examine(Path()))  # and nothing was imported that needs it


def test_what_is_said_agrees_with_the_project_file() -> None:
    project = tomllib.loads(PROJECT.read_text())["project"]
    for name, oldest in doctor.REQUIRED.items():
        assert f"{name}>={oldest}" in project["dependencies"]
    assert {"lora", "smollm2", "energy"} <= set(project["optional-dependencies"])


@pytest.mark.parametrize(
    ("environment", "level", "value"),
    [
        ({}, "note", "glibc's"),
        ({"LD_PRELOAD": "/usr/lib/libtcmalloc.so.4"}, "ok", "tcmalloc"),
        ({"MALLOC_MMAP_MAX_": "0"}, "ok", "MALLOC_MMAP_MAX_=0"),
    ],
)
@pytest.mark.skipif(sys.platform != "linux", reason="glibc is Linux's")
def test_the_allocator_is_read_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], level: str, value: str
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    [finding] = doctor.allocator(environment)
    assert finding.level == level
    assert value in finding.value


def test_a_meter_that_may_not_be_read_is_told_from_one_that_is_absent() -> None:
    absent = Found("NVML", missing="no GPU is visible")
    forbidden = Found("RAPL", missing="it may not be read", remedy="chmod a+r file")
    findings = doctor.meters([absent, forbidden])
    assert [finding.level for finding in findings] == ["ok", "note", "note"]
    assert "chmod" in findings[1].advice
    assert "--watts" in findings[2].advice
    assert len(doctor.meters([absent, Found("RAPL", [None])])) == 2  # type: ignore[list-item]


def test_brackets_are_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    odd = Finding("extras", "[red]", "a[b]", "note", "pip install 'x[y]'")
    Console().print(doctor.report([odd]))
    out = capsys.readouterr().out
    assert "[red]" in out
    assert "'x[y]'" in out
