"""Work in several processes that are forked off, results in order: the same as in one.

Forked, they know all that is in memory, so neither the work nor what it reads is sent to them.
Where processes cannot be forked all is done in this one.
"""

import ctypes
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, TypeVar

T = TypeVar("T")
_SINGLE = "TOKENIZERS_PARALLELISM"
"""Threads of a process are not there in one forked off."""
_work: Callable[[int], Any] = int


def processes() -> int:
    """How many may work at a time: the processors that are this process's own."""
    if multiprocessing.current_process().daemon or not sys.platform.startswith("linux"):
        return 1
    share = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, len(os.sched_getaffinity(0)) // share)


@contextmanager
def in_order(work: Callable[[int], T], numbers: Sequence[int], count: int) -> Iterator[Iterator[T]]:
    """`work` of each number, in their order, made by `count` processes while in here.

    Raises what `work` raises; ValueError, in one line, for a process that was killed.
    """
    global _work
    if count < 2 or len(numbers) < 2:
        yield map(work, numbers)
        return
    before, _work = (_work, os.environ.get(_SINGLE)), work
    os.environ[_SINGLE] = "false"
    forked = multiprocessing.get_context("fork")
    crew = ProcessPoolExecutor(min(count, len(numbers)), forked, _alone)
    try:
        yield _told(crew.map(_called, numbers))  # forked here
    finally:
        crew.shutdown(wait=True, cancel_futures=True)
        _work, single = before
        if single is None:
            del os.environ[_SINGLE]
        else:
            os.environ[_SINGLE] = single


def _told(results: Iterator[T]) -> Iterator[T]:
    try:
        yield from results
    except BrokenProcessPool:
        raise ValueError(
            "a process that helped was killed, perhaps for want of memory: nothing is lost, start "
            "again with more, or with one processor (taskset -c 0)"
        ) from None


def _called(number: int) -> Any:
    return _work(number)


def _alone() -> None:
    """Ctrl-C is the parent's to answer; without a parent there is nothing to do."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
