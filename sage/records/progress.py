"""Shows the progress of a run: a progress bar on a terminal, periodic lines otherwise."""

import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from sage.output.units import printable

QUIET_SECONDS = 30.0
"""Seconds between two lines if stderr is not a terminal."""


class Display:
    """Shows the steps and evaluations of a run on rank 0; other ranks pass `enabled=False` to disable it."""

    def __init__(self, title: str, *, enabled: bool) -> None:
        self._title, self._enabled = title, enabled
        self.total = 0
        self._console = Console(file=sys.stderr, highlight=False)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not (enabled and self._console.is_terminal),
        )
        self._task = self._bar.add_task(title, total=None, figures="")
        self._shown = time.monotonic()

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def step(self, done: int, figures: Mapping[str, float | None]) -> None:
        """Show the number of completed steps and the latest figures."""
        if not self._enabled:
            return
        shown = "  ".join(f"{name} {value:.4g}" for name, value in figures.items() if value is not None)
        self._bar.update(self._task, completed=done, total=self.total, figures=shown)
        if not self._console.is_terminal and time.monotonic() - self._shown > QUIET_SECONDS:
            self._shown = time.monotonic()
            self.print(f"step {done}/{self.total}  {shown}")

    def print(self, text: str) -> None:
        """Print a line above the bar."""
        if self._enabled:
            self._console.print(printable(f"{self._title}: {text}"), markup=False, soft_wrap=True)
