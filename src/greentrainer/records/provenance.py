"""Where numbers come from: versions, commit, hardware, seeds."""

import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

COMMIT = "GREENTRAINER_COMMIT"
"""Environment variable: the commit of a source tree that was copied without its history.

As `git describe --always --abbrev=40 --dirty --exclude '*'` says it: with "-dirty" behind it where
the tree differed.
"""
PACKAGES = ("greentrainer", "torch", "transformers", "peft", "numpy", "scipy")


def provenance(seeds: Sequence[int] = (), root: Path | None = None) -> dict[str, Any]:
    """Versions, commit, whether the tree differed from it, hardware and seeds.

    root: of the source tree whose commit it is; by default this package's, None of a release.
    """
    root = root or Path(__file__).resolve().parents[3]
    ours = _git(root, "ls-files", "--error-unmatch", str(Path(__file__).resolve())) is not None
    if ours:
        status = _git(root, "status", "--porcelain", "--", ".", ":!benchmarks/results")
        origin = {"commit": _git(root, "rev-parse", "HEAD"), "dirty": bool(status)}
    else:
        origin = _told(os.environ.get(COMMIT))
    return {
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
        **origin,
        "hardware": {
            "cpu": processor(),
            "cores": os.cpu_count(),
            "machine": platform.machine(),
            "gpu": _gpu(),
        },
        "seeds": list(seeds),
    }


def _told(commit: str | None) -> dict[str, Any]:
    """What the environment says of the commit."""
    clean = commit.removesuffix("-dirty") if commit else None
    return {"commit": clean, "dirty": None if clean is None else commit != clean}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _git(root: Path, *arguments: str) -> str | None:
    """What git says, None where this is no work tree or there is no git."""
    try:
        run = subprocess.run(
            ["git", *arguments], cwd=root, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return run.stdout.strip()


def _gpu() -> str | None:
    """The first GPU's name, None where there is none or nothing has imported torch."""
    torch = sys.modules.get("torch")
    return torch.cuda.get_device_name() if torch and torch.cuda.is_available() else None


def processor() -> str:
    """The processor's name where Linux tells it, or its architecture."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
