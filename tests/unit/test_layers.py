"""Arrows between modules go only downwards, and what needs no torch imports none."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import greentrainer

ROOT = Path(greentrainer.__file__).parent
LAYERS = [
    {"graph", "counters"},
    {"types", "energy"},
    {"meters", "config", "interrupt", "bill", "files", "provenance", "consumption"},
    {"stages", "snapshot", "report"},
    {"cost", "importance", "select", "freeze", "forward", "ledger", "pace", "tasks", "processes"},
    {"shapes", "scoring", "clock", "material"},
    {"evaluation"},
    {"graphs", "choosing", "currency", "timing"},
    {"budget"},
    {"observer", "shortening"},
    {"steering", "state", "pricing"},
    {"probing"},
    {"engine"},
    {"hf", "delta", "reference", "memory"},
    {"methods", "journal", "arguments"},
    {"outcome"},
    {"training", "workload"},
    {"progress"},
    {"runs"},
    {"quickstart", "bench", "plan", "doctor"},
    {"cli"},
]


def imported(path: Path) -> set[str]:
    """Top-level parts of the package that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "greentrainer":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("greentrainer."):
            found.add((node.module or "").split(".")[1])
    return found


def part(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def rank(name: str) -> int:
    return next(i for i, layer in enumerate(LAYERS) if name in layer)


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    me = part(path)
    if me == "__init__":
        return
    for other in imported(path) - {me}:
        assert rank(other) < rank(me), f"{me} imports {other}"


@pytest.mark.parametrize(
    "module",
    [
        "greentrainer.types",
        "greentrainer.select",
        "greentrainer.cli",
        "greentrainer.config",
        "greentrainer.report",
        "greentrainer.energy",
        "greentrainer.report.card",
    ],
)
def test_needs_no_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_public_names_stay_functions_whatever_is_imported() -> None:
    code = (
        "import greentrainer.select.controls, greentrainer.cost.trace, greentrainer\n"
        "assert all(callable(getattr(greentrainer, name)) for name in greentrainer.__all__)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
