"""Tasks on other hosts, with one ssh per host; their output and exit statuses as one stream of events."""

import queue
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Self

from sage.cluster.connection import END_SECONDS, Connection
from sage.cluster.connection import Ended as Ended
from sage.cluster.connection import Output as Output
from sage.cluster.connection import Task as Task
from sage.cluster.signals import delay_signals

OPTIONS = (
    "BatchMode=yes",
    "ConnectTimeout=10",
    # A lost connection is noticed within half a minute.
    "ServerAliveInterval=10",
    "ServerAliveCountMax=3",
    # The master of a shared connection would stay in the background and keep this process's pipes open.
    "ControlPath=none",
)
"""ssh's options, unless the user's options override them."""

START_SECONDS = 60.0
"""Seconds within which a host must start its tasks: ssh may hang during login or in a login script."""

POLL = 0.2
"""Seconds between two checks of the deadlines while no event arrives."""

BOOT = "import json, sys; exec(json.loads(sys.stdin.readline()))"
"""Reads the supervisor's source from standard input, so that no shell has to quote it."""


class RemoteTasks:
    """Tasks on their hosts. They end at the latest with this context or this process.

    Iteration yields the events until every task has ended. A failed task does not end the others. A host
    that does not start its tasks within `START_SECONDS` is abandoned.

    Args:
        tasks: The tasks to run.
        ssh: The program, with options that take precedence over `OPTIONS`.
        python: Python on the hosts, for the supervisor; it needs no packages.

    Raises:
        ValueError: The program `ssh` does not exist.
    """

    def __init__(
        self, tasks: Sequence[Task], *, ssh: Sequence[str] = ("ssh",), python: str = sys.executable
    ) -> None:
        self._running = {task.rank: task.host for task in tasks}
        self._events: queue.SimpleQueue[Output | Ended] = queue.SimpleQueue()
        self._start_by: float | None = time.monotonic() + START_SECONDS
        self._end_at: float | None = None
        self._kill_at: float | None = None
        self._abandon_at: float | None = None
        self._connections: list[Connection] = []
        options = [word for option in OPTIONS for word in ("-o", option)]
        command = f"exec {shlex.quote(python)} -I -c {shlex.quote(BOOT)}"
        try:
            for host in dict.fromkeys(task.host for task in tasks):
                here = [task for task in tasks if task.host == host]
                argv = [*ssh, "-T", *options, "--", host, command]
                with delay_signals():
                    self._connections.append(Connection(host, argv, here, self._events))
        except BaseException:
            self.__exit__(None, None, None)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for connection in self._connections:
            connection.end_tasks()
        deadline = time.monotonic() + END_SECONDS
        for connection in self._connections:
            connection.join(max(0.0, deadline - time.monotonic()))
        for connection in self._connections:
            connection.kill()
        for connection in self._connections:
            connection.join(1.0)

    def __iter__(self) -> Iterator[Output | Ended]:
        while self._running:
            self._enforce_deadlines()
            try:
                event = self._events.get(timeout=POLL)
            except queue.Empty:
                if self._abandon_at is None or time.monotonic() < self._abandon_at:
                    continue
                rank, host = next(iter(self._running.items()))
                event = Ended(host, rank, None, "ssh does not end")
            if isinstance(event, Ended):
                if event.rank not in self._running:
                    continue
                del self._running[event.rank]
            yield event

    def signal(self, number: int) -> None:
        """Send a signal to every task; may be called in a signal handler."""
        for connection in self._connections:
            connection.signal(number)

    def end(self, grace: float = 0.0) -> None:
        """End the running tasks and all processes that they started, after `grace` seconds of iteration."""
        self._end_at = time.monotonic() + grace

    def _enforce_deadlines(self) -> None:
        """Abandon hosts that start too late, and end the tasks when due: first by request, then by force."""
        now = time.monotonic()
        if self._start_by is not None and now >= self._start_by:
            self._start_by = None
            for connection in self._connections:
                if not connection.has_started:
                    connection.kill(f"it has not started its tasks within {START_SECONDS:g} s")
        if self._end_at is not None and now >= self._end_at:
            self._end_at, self._kill_at = None, now + END_SECONDS
            for connection in self._connections:
                connection.end_tasks()
        if self._kill_at is not None and now >= self._kill_at:
            self._kill_at, self._abandon_at = None, now + END_SECONDS
            for connection in self._connections:
                connection.kill()
