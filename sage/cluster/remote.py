"""Tasks on other hosts, each host's over one ssh: what they say and how they end, as one stream of events."""

import os
import queue
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from sage.cluster.connection import FAREWELL, Line
from sage.cluster.connection import Ended as Ended
from sage.cluster.connection import Said as Said
from sage.cluster.connection import Task as Task
from sage.cluster.signals import held
from sage.comm.launchers import OWN

OPTIONS = (
    "BatchMode=yes",
    "ConnectTimeout=10",
    # A host that goes out of reach is noticed within half a minute.
    "ServerAliveInterval=10",
    "ServerAliveCountMax=3",
    # The master of a shared connection would go on in the background, and keep our pipes open.
    "ControlPath=none",
)
"""What ssh is told, unless it has been told otherwise."""

TOLD = ("SAGE_", "GLOO_", "NCCL_", "TORCH_", "OMP_")
"""How the variables begin that are handed on to ranks elsewhere."""

START_SECONDS = 60.0
"""Seconds in which a host must have started its tasks: ssh may hang in signing in, or in a login script."""

POLL = 0.2
"""Seconds between two looks at the clock while nothing is said."""

BOOT = "import json, sys; exec(json.loads(sys.stdin.readline()))"
"""Reads the keeper's text, so that no shell on the way has to understand it."""


class Crew:
    """Tasks that run on their hosts, while this context lasts and this process lives.

    Iterating over it gives the events until every task has ended. One that fails does not end the others.
    A host that does not start its tasks within `START_SECONDS` is given up.

    Args:
        tasks: What to run where.
        ssh: The program, with options that go before ours and so win.
        python: What keeps the tasks at the far end: any Python, for it needs no package.

    Raises:
        ValueError: where there is no such program as `ssh`.
    """

    def __init__(
        self, tasks: Sequence[Task], *, ssh: Sequence[str] = ("ssh",), python: str = sys.executable
    ) -> None:
        self._running = {task.rank: task.host for task in tasks}
        self._events: queue.SimpleQueue[Said | Ended] = queue.SimpleQueue()
        self._start_by: float | None = time.monotonic() + START_SECONDS
        self._hang_up_at: float | None = None
        self._kill_at: float | None = None
        self._give_up_at: float | None = None
        self._lines: list[Line] = []
        options = [word for option in OPTIONS for word in ("-o", option)]
        command = f"exec {shlex.quote(python)} -I -c {shlex.quote(BOOT)}"
        try:
            for host in dict.fromkeys(task.host for task in tasks):
                here = [task for task in tasks if task.host == host]
                argv = [*ssh, "-T", *options, "--", host, command]
                with held():
                    self._lines.append(Line(host, argv, here, self._events))
        except BaseException:
            self.__exit__(None, None, None)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for line in self._lines:
            line.hang_up()
        patience = time.monotonic() + FAREWELL
        for line in self._lines:
            line.join(max(0.0, patience - time.monotonic()))
        for line in self._lines:
            line.kill()
        for line in self._lines:
            line.join(1.0)

    def __iter__(self) -> Iterator[Said | Ended]:
        while self._running:
            self._keep_time()
            try:
                event = self._events.get(timeout=POLL)
            except queue.Empty:
                if self._give_up_at is None or time.monotonic() < self._give_up_at:
                    continue
                rank, host = next(iter(self._running.items()))
                event = Ended(host, rank, None, "ssh does not end")
            if isinstance(event, Ended):
                if event.rank not in self._running:
                    continue
                del self._running[event.rank]
            yield event

    def signal(self, number: int) -> None:
        """Send every task a signal; a signal handler may call this."""
        for line in self._lines:
            line.signal(number)

    def end(self, grace: float = 0.0) -> None:
        """End the tasks that still run, and all that they started, after so many seconds of iteration."""
        self._hang_up_at = time.monotonic() + grace

    def _keep_time(self) -> None:
        """Give hosts up that are late, and end the tasks when it is time: first in order, then by force."""
        now = time.monotonic()
        if self._start_by is not None and now >= self._start_by:
            self._start_by = None
            for line in self._lines:
                if not line.has_started:
                    line.kill(f"it has not started its tasks within {START_SECONDS:g} s")
        if self._hang_up_at is not None and now >= self._hang_up_at:
            self._hang_up_at, self._kill_at = None, now + FAREWELL
            for line in self._lines:
                line.hang_up()
        if self._kill_at is not None and now >= self._kill_at:
            self._kill_at, self._give_up_at = None, now + FAREWELL
            for line in self._lines:
                line.kill()


def surroundings() -> dict[str, str]:
    """Variables for a rank elsewhere: this checkout, so that it is found there too, and what we were told."""
    told = {name: value for name, value in os.environ.items() if name.startswith(TOLD) and name not in OWN}
    checkout = Path(__file__).parents[2]
    paths = [str(checkout)] if (checkout / "pyproject.toml").exists() else []
    paths += filter(None, [os.environ.get("PYTHONPATH")])
    search = {"PYTHONPATH": os.pathsep.join(paths)} if paths else {}
    # A folder called sage in the working directory must not stand in front; output is wanted as it comes.
    return {**told, **search, "PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1"}
