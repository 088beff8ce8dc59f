"""Ctrl-C that loses nothing: a long job is asked to stop where it is whole."""

import signal
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

from greentrainer.model import started

STOPPING = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)
]
"""Signals that ask a run to stop; the last is what Slurm is told to send."""
ECHO = 5.0
ASKED = threading.Event()
"""Set when this process was asked to stop."""


class StopRequest:
    """While the block runs, Ctrl-C, SIGTERM and SIGUSR1 (of Slurm) only set `made`; the job looks
    at it when it can.

    A second signal stops at once (KeyboardInterrupt); of several processes not one that follows
    within `ECHO` seconds, for launchers hand on what was sent to all of a job.  Signals reach the
    main thread only; in any other the block changes nothing.

    notify: called at the first signal.
    """

    def __init__(self, notify: Callable[[], None] = lambda: None) -> None:
        self.made = False
        self._notify = notify
        self._at: float | None = None
        self._echo = ECHO if started() > 1 else 0.0
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            for number in STOPPING:
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def _note(self, _number: int, _frame: FrameType | None) -> None:
        ASKED.set()
        if self._at is None:
            self._at, self.made = time.monotonic(), True
            self._notify()
        elif time.monotonic() - self._at >= self._echo:
            raise KeyboardInterrupt
