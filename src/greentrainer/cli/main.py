"""The command line's way in: what a user can mend is one line on standard error."""

import json
import os
import signal
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import typer

from greentrainer.cli import checkpoint, look, pages, train, use
from greentrainer.cli.shell import app

COMMANDS = (train, look, use, pages, checkpoint)
"""Modules that add their commands to the application, in the order that help shows."""


def main() -> None:
    """Run a command; what a user can mend is one line on standard error, exit code 2."""
    for name in ("SIGTERM", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.default_int_handler)
    warnings.formatwarning = _warned
    try:
        sys.exit(app(standalone_mode=False) or 0)  # what a typer.Exit holds is returned
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(130)
    except (ValueError, OSError) as error:
        _refuse(str(error))
    except Exception as error:
        if type(error).__module__.startswith(("click", "typer", "wandb.errors")):
            _refuse(getattr(error, "format_message", error.__str__)())
        raise


def _warned(message: Any, *_: Any, **__: Any) -> str:
    """A warning as one line."""
    return f"warning: {' '.join(str(message).split())}\n"


def _refuse(message: str) -> None:
    """Say it: one of several processes in its own log, and to the launcher."""
    told = " ".join(message.split())
    _tell_launcher(told)
    if os.environ.get("RANK", "0") == "0" or not sys.stderr.isatty():
        print(f"error: {told}", file=sys.stderr)
    sys.exit(2)


def _tell_launcher(told: str) -> None:
    """Leave it where torch's launchers look for what a process ended by."""
    place = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if place:
        about = {"message": told, "extraInfo": {"timestamp": str(int(time.time()))}}
        Path(place).write_text(json.dumps({"message": about}), encoding="utf-8")
