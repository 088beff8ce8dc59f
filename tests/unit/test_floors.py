"""The house: imports go down a floor, by front doors only; what needs no torch loads none."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from tools.architecture import FLOORS, SOURCE, Import, files, floor_of, imports, says

ROOMS = [room for rooms in FLOORS for room in rooms]
PACKAGES = [room for room in ROOMS if (SOURCE / room).is_dir()]


def wrong(one: Import) -> str | None:
    """What is wrong with an import, if something is."""
    if one.package in (one.room, "__version__"):
        return None
    if floor_of(one.package) >= floor_of(one.room):
        return f"{one.room} imports from {one.package}, which is on no lower floor"
    if one.module and one.package in PACKAGES:
        if one.module != one.package:
            return (
                f"{one.module} is inside of {one.package}: import from greentrainer.{one.package}"
            )
        if one.name not in importlib.import_module(f"greentrainer.{one.package}").__all__:
            return f"{one.package} does not hand on {one.name}"
    return None


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_point_down_and_come_through_the_door(path: Path) -> None:
    assert [f"line {one.line}: {said}" for one in imports(path) if (said := wrong(one))] == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("from greentrainer.engine import AdaptiveBackprop", "on no lower floor"),
        ("def late():\n    from greentrainer.run import execute", "on no lower floor"),
        ("import greentrainer.cost.trace", "is inside of cost"),
        ("from greentrainer.cost.trace import faked", "is inside of cost"),
        ("from greentrainer.types import nothing_of_the_kind", "does not hand on"),
        ("from greentrainer.energy import Meter", "on no lower floor"),
    ],
)
def test_what_breaks_the_rule_is_found(
    text: str, said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Each on a floor that it must not be on: an arrow up, a late one, sideways, a back door."""
    monkeypatch.setattr("tools.architecture.SOURCE", tmp_path)
    room = "energy" if "types" not in text and "cost" not in text else "forward"
    path = tmp_path / ("records" if "energy" in text else room) / "new.py"
    path.parent.mkdir()
    path.write_text(text)
    [found] = [found for one in imports(path) if (found := wrong(one))]
    assert said in found


def test_every_folder_and_file_stands_on_a_floor() -> None:
    paths = [p for p in SOURCE.iterdir() if p.name[0] != "_" and p.name != "py.typed"]
    entries = {p.name.removesuffix(".py") for p in paths}
    assert entries == set(ROOMS)
    assert len(entries) + 1 <= 20  # and `__init__.py`


@pytest.mark.parametrize("room", PACKAGES)
def test_a_package_says_what_belongs_and_names_a_file_to_start_with(room: str) -> None:
    tree = ast.parse((SOURCE / room / "__init__.py").read_text(encoding="utf-8"))
    text = ast.get_docstring(tree) or ""
    assert says(room)
    named = [word.strip("`.,;:") for word in text.split() if word.strip("`.,;:").endswith(".py")]
    assert named, "name the file to read first"
    assert all((SOURCE / room / name).is_file() for name in named)


@pytest.mark.parametrize("room", PACKAGES)
def test_what_a_package_hands_on_is_there(room: str) -> None:
    package = importlib.import_module(f"greentrainer.{room}")
    assert len(set(package.__all__)) == len(package.__all__)
    assert [name for name in package.__all__ if not hasattr(package, name)] == []


@pytest.mark.parametrize(
    "module",
    [
        "greentrainer.types",
        "greentrainer.select",
        "greentrainer.cli",
        "greentrainer.config",
        "greentrainer.records",
        "greentrainer.report",
        "greentrainer.energy",
        "greentrainer.report.card",
    ],
)
def test_needs_no_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_run_loads_no_matplotlib_before_its_report() -> None:
    code = "import sys, greentrainer.run; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


PUBLIC = {
    "greentrainer": "AdaptiveBackprop Budget CostGraph Ledger Selection measure_importance select "
    "trace",
    "greentrainer.cli": "main",
    "greentrainer.forward.options": "ForwardOptions",
    "greentrainer.hf": "GreenCallback GreenConfig GreenSeq2SeqTrainer GreenTrainer load",
    "greentrainer.hf.blocks": "compile_blocks",
    "greentrainer.hf.models": "CACHE_VARIABLE SMOLLM2 blank cache_root load load_tokenizer "
    "rebuilt_smollm2 sketch",
    "greentrainer.tasks": "FORMATS NAMES SPLITS Example Message PromptFormat Task load",
    "greentrainer.tasks.encode": "Collator Encoded encode_all",
}
"""What README, docs and examples have told people to import; a name here never goes away."""


def test_public_imports_work() -> None:
    lines = [f"from {module} import {', '.join(names.split())}" for module, names in PUBLIC.items()]
    assert subprocess.run([sys.executable, "-c", "\n".join(lines)], check=False).returncode == 0


def test_public_names_stay_functions_whatever_is_imported() -> None:
    code = (
        "import greentrainer.select.controls, greentrainer.cost.trace, greentrainer\n"
        "assert all(callable(getattr(greentrainer, name)) for name in greentrainer.__all__)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
