"""Where figures come from: the commit of the whole tree, whether it differed, or what was told."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import greentrainer.records
from greentrainer.records.provenance import COMMIT

SOURCE = Path(greentrainer.records.__file__).parents[1]


def git(tree: Path, *words: str) -> str:
    who = ("-c", "user.name=n", "-c", "user.email=e@example.org")
    run = subprocess.run(
        ["git", *who, *words], cwd=tree, capture_output=True, text=True, check=True
    )
    return run.stdout.strip()


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A clean tree of its own, laid out as ours is."""
    package = tmp_path / "src" / "greentrainer"
    (package / "records").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "records" / "__init__.py").write_text("")
    whole = SOURCE / "records" / "provenance.py"
    (package / "records" / "provenance.py").write_text(whole.read_text(encoding="utf-8"))
    (tmp_path / "benchmarks" / "results").mkdir(parents=True)
    (tmp_path / "README.md").write_text("as it was\n")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-qm", "all")
    return tmp_path


def told(tree: Path, commit: str = "") -> dict[str, Any]:
    """The provenance that the tree's own package tells."""
    head = "import json; from greentrainer.records.provenance import provenance"
    code = f"{head}; print(json.dumps(provenance()))"
    run = subprocess.run(
        [sys.executable, "-B", "-c", code],
        env={"PYTHONPATH": str(tree / "src"), "PATH": "/usr/bin:/bin", COMMIT: commit},
        cwd="/", capture_output=True, text=True, check=True,
    )  # fmt: skip
    found: dict[str, Any] = json.loads(run.stdout)
    return {key: found[key] for key in ("commit", "dirty")}


def test_a_clean_tree_is_its_commit(tree: Path) -> None:
    assert told(tree) == {"commit": git(tree, "rev-parse", "HEAD"), "dirty": False}


@pytest.mark.parametrize("name", ["README.md", "benchmarks/new.py", "src/greentrainer/new.py"])
def test_a_change_anywhere_makes_it_dirty(name: str, tree: Path) -> None:
    (tree / name).write_text("changed\n")
    assert told(tree)["dirty"] is True


def test_results_that_are_being_written_do_not(tree: Path) -> None:
    (tree / "benchmarks" / "results" / "engine.json").write_text("{}")
    assert told(tree)["dirty"] is False


@pytest.mark.parametrize(
    ("commit", "origin"),
    [
        ("", {"commit": None, "dirty": None}),
        ("0123abc", {"commit": "0123abc", "dirty": False}),
        ("0123abc-dirty", {"commit": "0123abc", "dirty": True}),
    ],
)
def test_a_copy_without_history_is_what_the_environment_says(
    commit: str, origin: dict[str, Any], tree: Path
) -> None:
    (tree / ".git").rename(tree / "history")
    assert told(tree, commit) == origin
