"""Timing of the phases of a step; active only in a profiling run and in the steps of a trace.

Outside of `Phases.running()` and `Spans.running()`, `with phase("select"):` has almost no overhead and never
synchronises the device, so that timing does not affect other runs.
"""

import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

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


@dataclass(frozen=True)
class Span:
    """A phase or a collective in a trace, with its start and end (`time.perf_counter`)."""

    thread: str
    """Name of the row in which it is shown."""
    name: str
    start: float
    end: float


class Spans:
    """Start and end of each phase and collective of this process, on all of its threads.

    Args:
        device: Its work is not waited for. On a GPU the phases are NVTX ranges too.
    """

    def __init__(self, device: torch.device) -> None:
        self.found: list[Span] = []
        self.is_on = False
        """Whether the current step is traced."""
        self._has_nvtx = device.type == "cuda"

    @contextmanager
    def running(self, thread: str) -> Iterator[None]:
        """Record the phases of the calling thread here, in the row `thread`."""
        _running.spans, _running.row = self, thread
        try:
            yield
        finally:
            _running.spans = None

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Record the block on a thread that is `running`."""
        start = time.perf_counter()
        if self._has_nvtx:
            torch.cuda.nvtx.range_push(name)
        try:
            yield
        finally:
            if self._has_nvtx:
                torch.cuda.nvtx.range_pop()
            self.add(_running.row, name, start, time.perf_counter())

    def add(self, thread: str, name: str, start: float, end: float) -> None:
        """Record what has already ended."""
        self.found.append(Span(thread, name, start, end))


@contextmanager
def phase(name: str, detail: str = "") -> Iterator[None]:
    """Time the block as the phase `name` in a profiling run; otherwise do nothing.

    Args:
        name: The phase.
        detail: Its name in a trace, by default that of the phase.
    """
    phases: Phases | None = getattr(_running, "phases", None)
    spans: Spans | None = getattr(_running, "spans", None)
    if phases is None and spans is None:
        yield
        return
    with nullcontext() if spans is None else spans.span(detail or name):
        if phases is not None:
            phases.enter(name)
        try:
            yield
        finally:
            if phases is not None:
                phases.leave()
