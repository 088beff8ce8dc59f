"""The command line's way in: what a user can mend is one line on standard error."""

import signal
import sys
import warnings
from typing import Any

import typer

from greentrainer.cli import checkpoint, look, pages, train, use
from greentrainer.cli.shell import app

COMMANDS = (train, look, use, pages, checkpoint)
"""Modules that add their commands to the application, in the order that help shows."""


def main() -> None:
    """Run a command; what a user can mend is one line on standard error, exit code 2."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
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
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)
