"""What is handed out: the wheel and the source archive, and what they say of themselves."""

import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email import message_from_string
from email.message import Message
from pathlib import Path

import pytest

import greentrainer

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRA = re.compile(r"greentrainer\[([a-z0-9,]+)\]")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both, built without a network; only the build backend is needed."""
    folder = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "hatchling", "build", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> dict[str, bytes]:
    """Its files."""
    [path] = built.glob("*.whl")
    with zipfile.ZipFile(path) as file:
        return {name: file.read(name) for name in file.namelist()}


@pytest.fixture(scope="module")
def metadata(wheel: dict[str, bytes]) -> Message:
    """What it says of itself."""
    [text] = [data for name, data in wheel.items() if name.endswith(".dist-info/METADATA")]
    return message_from_string(text.decode())


def test_the_wheel_holds_the_package_bit_for_bit_and_no_other(wheel: dict[str, bytes]) -> None:
    files = [p for p in SOURCE.rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    here = {p.relative_to(SOURCE).as_posix(): p.read_bytes() for p in files}
    assert {n: data for n, data in wheel.items() if ".dist-info/" not in n} == here
    assert "greentrainer/py.typed" in here
    assert [name for name in here if name.endswith(".j2")]  # the pages' templates


def test_the_wheel_brings_the_command_and_the_licence(wheel: dict[str, bytes]) -> None:
    [entry] = [data for name, data in wheel.items() if name.endswith("entry_points.txt")]
    assert b"greentrainer = greentrainer.cli:main" in entry
    assert [name for name in wheel if name.endswith("licenses/LICENSE")]


def test_the_source_archive_can_be_worked_on(built: Path) -> None:
    [path] = built.glob("*.tar.gz")
    with tarfile.open(path) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
    wanted = {"pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "Makefile", ".ci/run"}
    assert wanted | {"src/greentrainer/py.typed", "tests/conftest.py"} <= names
    assert not [name for name in names if name.endswith((".pyc", ".safetensors"))]


def test_the_metadata(metadata: Message) -> None:
    assert metadata["Version"] == PROJECT["version"] == greentrainer.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Keywords"]
    found = metadata.get_all("Classifier")
    assert found
    assert "Typing :: Typed" in found
    oldest = PROJECT["requires-python"].removeprefix(">=")
    assert f"Programming Language :: Python :: {oldest}" in found


def test_extras_that_anyone_is_told_to_install_are_there(metadata: Message) -> None:
    extras = set(metadata.get_all("Provides-Extra") or ())
    texts = [*SOURCE.rglob("*.py"), *ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]
    texts += [*ROOT.glob("examples/*.py"), ROOT / "pyproject.toml"]
    told = {
        name
        for path in texts
        for names in EXTRA.findall(path.read_text(encoding="utf-8"))
        for name in names.split(",")
    }
    assert {"lora", "energy", "quantised", "smollm2"} <= told <= extras
