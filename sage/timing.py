"""Timing of the phases of a step; active only in a profiling run.

Outside of `Phases.running()`, `with phase("select"):` has almost no overhead and never synchronises the
device, so that timing does not affect other runs.
"""

import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_running = threading.local()


class Phases:
    """Seconds per phase since the last `take()`; if phases nest, time counts only for the innermost one."""

    def __init__(self, device: torch.device) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._device = device
        self._open: list[str] = []
        self._since = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Record the phases of the calling thread here."""
        _running.phases = self
        try:
            yield
        finally:
            _running.phases = None

    def take(self) -> dict[str, float]:
        """Return the seconds by phase and reset them."""
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
    """Time the block as the phase `name` in a profiling run; otherwise do nothing."""
    phases: Phases | None = getattr(_running, "phases", None)
    if phases is None:
        yield
        return
    phases.enter(name)
    try:
        yield
    finally:
        phases.leave()
