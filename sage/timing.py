"""Phases of a step, timed apart only in a profiling run.

Outside of `Phases.running()` a `with phase("select"):` costs next to nothing and never synchronises the
device, so that the measured run is not disturbed by its own clock.
"""

import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_running = threading.local()


class Phases:
    """Seconds spent in each phase since the last `take()`; phases nest, and an inner one's are its own."""

    def __init__(self, device: torch.device) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._device = device
        self._open: list[str] = []
        self._since = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Make this the clock of the calling thread."""
        _running.phases = self
        try:
            yield
        finally:
            _running.phases = None

    def take(self) -> dict[str, float]:
        """The seconds by phase, and start again from nothing."""
        seconds, self.seconds = dict(self.seconds), defaultdict(float)
        return seconds

    def enter(self, name: str) -> None:
        self._book()
        self._open.append(name)

    def leave(self) -> None:
        self._book()
        self._open.pop()

    def _book(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        now = time.perf_counter()
        if self._open:
            self.seconds[self._open[-1]] += now - self._since
        self._since = now


@contextmanager
def phase(name: str) -> Iterator[None]:
    """Time the block under `name`, where a profiling run is on; otherwise do nothing."""
    phases: Phases | None = getattr(_running, "phases", None)
    if phases is None:
        yield
        return
    phases.enter(name)
    try:
        yield
    finally:
        phases.leave()
