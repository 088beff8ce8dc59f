"""Peak memory and seconds of a stretch of work."""

import threading
import time
from types import TracebackType

import psutil
import torch


def now(device: torch.device) -> float:
    """Seconds on a clock, once the device, if it is a GPU, has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


class PeakMemory:
    """Peak memory in bytes while the block ran: the GPU's if there is one, else the process's.

    The process's resident memory is sampled every 20 ms: a spike shorter than that may be missed.
    """

    def __init__(self) -> None:
        self.peak = 0
        self._process = psutil.Process()
        self._stop = threading.Event()
        self._sampler = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> "PeakMemory":
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        else:
            self._sampler.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if torch.cuda.is_available():
            self.peak = torch.cuda.max_memory_allocated()
            return
        self._stop.set()
        self._sampler.join()

    def _sample(self) -> None:
        while True:
            self.peak = max(self.peak, self._process.memory_info().rss)
            if self._stop.wait(0.02):
                return
