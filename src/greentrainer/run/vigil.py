"""Looks whether all processes go on, and ends this one where another has gone or stands still.

What torch says of it comes late, and does not name the process: one that waits in vain for another
hears of a time limit.  So each tells the others, in the launcher's store, how many times it has met
them: of those that wait for one another the one that has met them less often is what they wait for.
"""

import json
import os
import threading
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

import torch.distributed as dist

from greentrainer.model import Alone
from greentrainer.run.interrupt import ASKED

EVERY = 1.0
SILENT = 25.0
"""Seconds without a sign of life after which a process has gone, its machine perhaps with it."""
STOPPED = 5.0
"""The same where this one was asked to stop, as launchers do when another has ended."""

Told = Mapping[int, tuple[int, int]]
"""Of each process how often it has told of itself, and how often it has met the others."""


class Vigil:
    """While the block runs, ends this process (`end`) where it would wait in vain.

    limit: seconds that a process may stand still while others wait for it.
    end: called, in a thread of its own, with the reason in one line.
    """

    def __init__(
        self,
        processes: Alone,
        limit: float,
        end: Callable[[str], None],
    ) -> None:
        self.rank, self.count, self.limit = processes.rank, processes.count, limit
        self.end = end
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._seen: dict[int, tuple[int, float]] = {}
        self._met, self._since = -1, time.monotonic()

    def __enter__(self) -> "Vigil":
        if self.count > 1:
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        if self.count > 1:
            self._thread.join()

    def _watch(self) -> None:
        place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        turn = 0
        try:
            store = dist.TCPStore(*place, is_master=False)  # type: ignore[attr-defined]
            while not self._over.wait(EVERY):
                turn += 1
                store.set(f"vigil/{self.rank}", json.dumps([turn, met()]))
                names = [f"vigil/{rank}" for rank in range(self.count)]
                told = {
                    rank: tuple(json.loads(store.get(name)))
                    for rank, name in enumerate(names)
                    if store.check([name])
                }
                reason = self.reason(told)
                if reason is not None:
                    self.end(reason)
                    return
        except (RuntimeError, OSError) as error:
            if not self._over.is_set():
                self.end(f"the launcher's store does not answer: {' '.join(str(error).split())}")

    def reason(self, told: Told) -> str | None:
        """Why this process has to end; None while it may go on."""
        now = time.monotonic()
        for rank, (turn, _) in told.items():
            if self._seen.get(rank, (-1, 0.0))[0] != turn:
                self._seen[rank] = turn, now
        own = told[self.rank][1]
        if own != self._met:
            self._met, self._since = own, now
        others = {rank: one for rank, one in told.items() if rank != self.rank}
        patience = STOPPED if ASKED.is_set() else SILENT
        gone = [rank for rank in others if now - self._seen[rank][1] > patience]
        if gone:
            return f"{named(gone)} has gone"
        least = min(count for _, count in told.values())
        if own > least and now - self._since > self.limit:
            behind = [rank for rank, (_, count) in told.items() if count == least]
            return f"{named(behind)} stands still for more than {self.limit:g} seconds"
        return None


def met() -> int:
    """How often this process has met the others, or waits to."""
    group: Any = dist.group.WORLD
    return int(group._get_sequence_number_for_group()) if group is not None else 0


def named(ranks: list[int]) -> str:
    """For people."""
    return " and ".join(f"process {rank}" for rank in ranks)
