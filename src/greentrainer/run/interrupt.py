"""Ctrl-C that loses nothing: a long job is asked to stop where it is whole."""

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any


class StopRequest:
    """While the block runs, Ctrl-C and SIGTERM only set `made`; the job looks at it when it can.

    A second signal stops at once (KeyboardInterrupt).  Signals reach the main thread only; in any
    other the block changes nothing.

    notify: called at the first signal.
    """

    def __init__(self, notify: Callable[[], None] = lambda: None) -> None:
        self.made = False
        self._notify = notify
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
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
        if self.made:
            raise KeyboardInterrupt
        self.made = True
        self._notify()
