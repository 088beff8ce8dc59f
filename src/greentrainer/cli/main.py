"""The command line's way in: what a user can mend is one line on standard error."""

import atexit
import os
import signal
import sys
import traceback
import warnings
from typing import Any

import typer

from greentrainer.cli import checkpoint, look, pages, train, use
from greentrainer.cli.shell import app
from greentrainer.records import interrupted, visible

COMMANDS = (train, look, use, pages, checkpoint)
"""Modules that add their commands to the application, in the order that help shows."""


def main() -> None:
    """Run a command; what a user can mend is one line on standard error, exit code 2.

    One of several processes goes at once: what waits for the others cannot be taken down in good
    order, and even after they have left together a thread of the group that is still there may
    abort the process as Python takes itself down.
    """
    try:
        _run()
    except BaseException as leave:
        code = leave.code if isinstance(leave, SystemExit) else 1
        if "RANK" not in os.environ:
            raise
        if not code:
            atexit._run_exitfuncs()
        elif not isinstance(leave, SystemExit):
            traceback.print_exc()
            _tell_launcher(" ".join(f"{type(leave).__name__}: {leave}".split())[:500])
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit((code or 0) if isinstance(code, int | None) else 1)


def _run() -> None:
    for name in ("SIGTERM", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.default_int_handler)
    warnings.formatwarning = _warned
    try:
        sys.exit(app(standalone_mode=False) or 0)  # what a typer.Exit holds is returned
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(130)
    except (ValueError, OSError) as error:
        if interrupted(error):
            sys.exit(130)
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
    told = visible(" ".join(message.split()))
    _tell_launcher(told)
    if "GREENTRAINER_LAUNCHED" not in os.environ and os.environ.get("RANK", "0") == "0":
        print(f"error: {told}", file=sys.stderr)
    sys.exit(2)


def _tell_launcher(told: str) -> None:
    if "RANK" in os.environ:
        from greentrainer.run import tell_launcher

        tell_launcher(told)
