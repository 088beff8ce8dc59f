"""The command line: start with `main.py`; a file holds commands of one kind.

Heavy imports wait until a command runs, so `--help` answers at once.  What a command does is done
elsewhere; here it is only read, called and shown.
"""

from greentrainer.cli.main import main
from greentrainer.cli.shell import app

__all__ = ["app", "main"]
