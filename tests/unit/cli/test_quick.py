"""What answers at once: importing the package, help, the version, completion.

Modules that are loaded are held, not seconds: those depend on the machine.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import greentrainer
from tests.folders import folder

HEAVY = {"torch", "numpy", "transformers", "datasets", "peft", "bitsandbytes", "matplotlib"}
LOADED = "import json, sys; print(json.dumps(sorted(name for name in sys.modules)))"
COMMANDS = (
    "chat", "compare", "data", "delta", "doctor", "evaluate", "generate", "init", "merge", "plan",
    "quickstart", "report", "runs", "train",
)  # fmt: skip


def run(code: str, **environment: str) -> tuple[str, set[str]]:
    """What a new process prints, and which modules it has loaded in the end."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | environment,
    )
    *said, loaded = done.stdout.rstrip().split("\n")
    return "\n".join(said), set(json.loads(loaded))


def typed(*arguments: str | Path, **environment: str) -> tuple[str, set[str]]:
    """The same of a command."""
    line = ["greentrainer", *map(str, arguments)]
    code = (
        f"import sys\nsys.argv = {line!r}\nfrom greentrainer.cli import main\n"
        f"try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end\n{LOADED}"
    )
    return run(code, **environment)


def test_the_package_alone_loads_nothing_heavy() -> None:
    _, loaded = run(f"import greentrainer\n{LOADED}")
    assert not loaded & HEAVY
    assert "rich" not in loaded
    assert {name for name in loaded if name.startswith("greentrainer")} == {"greentrainer"}


def test_help_loads_nothing_heavy_and_names_every_command() -> None:
    said, loaded = typed("--help")
    assert not loaded & HEAVY
    assert all(f" {name} " in said for name in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_loads_nothing_heavy(command: str) -> None:
    said, loaded = typed(command, "--help")
    assert not loaded & HEAVY
    assert "Usage" in said


def test_the_version() -> None:
    said, loaded = typed("--version")
    assert said == f"greentrainer {greentrainer.__version__}"
    assert not loaded & HEAVY


def test_what_only_reads_a_folder_needs_no_torch(tmp_path: Path) -> None:
    made = folder(tmp_path / "run")
    said, loaded = typed("runs", tmp_path)
    assert "green" in said
    assert not loaded & HEAVY
    _, loaded = typed("report", made)
    assert not loaded & (HEAVY - {"numpy", "matplotlib"})


def test_completion() -> None:
    asked = {"COMP_WORDS": "greentrainer tra", "COMP_CWORD": "1"}
    said, loaded = typed(_GREENTRAINER_COMPLETE="complete_bash", **asked)
    assert said == "train"
    assert not loaded & HEAVY


def test_every_public_name_is_listed_before_it_is_loaded() -> None:
    code = "import greentrainer\nassert set(greentrainer.__all__) <= set(dir(greentrainer))\n"
    assert not run(code + LOADED)[1] & HEAVY


@pytest.mark.parametrize(
    "before",
    ["", "import greentrainer.select", "from greentrainer.select import controls"],
)
def test_select_is_the_function_whatever_was_imported_before(before: str) -> None:
    code = (
        f"{before}\nimport greentrainer\nfrom greentrainer import select\n"
        "assert select.__module__ == 'greentrainer.select.knapsack'\n"
        "import greentrainer.select.states\nassert greentrainer.select is select\n"
    )
    run(code + LOADED)


def test_a_name_that_is_not_there() -> None:
    with pytest.raises(AttributeError, match="no attribute 'selekt'"):
        _ = greentrainer.selekt
