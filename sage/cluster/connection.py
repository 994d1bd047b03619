"""The ssh connection to one host: starts tasks there, and validates and forwards their output and exit."""

import json
import os
import queue
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

from sage.cluster import supervisor

END_SECONDS = 5.0
"""Seconds that ssh has to exit once its tasks have been ended."""

LINE_BYTES = 256 * 1024
"""The longest line that is not split. The supervisor splits lines of its tasks at a much lower length."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """A process to run on a host."""

    host: str
    """The host in ssh's syntax."""
    rank: int
    """The task's index among all tasks."""
    argv: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)
    """Variables added to sshd's environment."""
    cwd: str | None = None
    """The working directory; None: the one in which ssh starts commands."""


@dataclass(frozen=True)
class Output:
    """A line of a task's output; with `rank` None, a line printed by ssh or by a login script."""

    host: str
    rank: int | None
    text: str
    stream: Literal["stdout", "stderr"]


@dataclass(frozen=True)
class Ended:
    """The end of a task, reported once per task."""

    host: str
    rank: int
    status: int | None
    """Exit status; negative: ended by that signal; None: ssh could not connect or lost the connection."""
    reason: str = ""
    """If the status is None: ssh's exit status, and the last line that ssh or the host's shell printed."""


class Connection:
    """The ssh process to one host; puts `Output` and `Ended` events into a queue."""

    def __init__(
        self,
        host: str,
        argv: Sequence[str],
        tasks: Sequence[Task],
        events: "queue.SimpleQueue[Output | Ended]",
    ) -> None:
        self._host, self._events = host, events
        self._ranks = [task.rank for task in tasks]
        self._pending: deque[int] = deque()
        self._is_started = False
        self._last_line = ""
        self._kill_reason = ""
        self.has_started = False
        """Whether each of the host's tasks has been started or has failed to start."""
        try:
            self._ssh = subprocess.Popen(
                argv,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                # The terminal's signals must not end ssh; this process forwards them.
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            raise ValueError(f"cannot start {argv[0]}: {error}; install ssh, or give --ssh") from error
        orders = [Path(supervisor.__file__).read_text(), [_order(task) for task in tasks]]
        text = "".join(json.dumps(part) + "\n" for part in orders).encode()
        # In threads, because an ssh that hangs neither reads nor writes.
        threading.Thread(target=self._send_orders, args=(text,), daemon=True).start()
        self._thread = threading.Thread(target=self._read_events, daemon=True)
        self._thread.start()

    def signal(self, number: int) -> None:
        """Send a signal to the host's tasks, once they have been started."""
        self._pending.append(number)
        if self._is_started:
            self._send_pending()

    def end_tasks(self) -> None:
        """End the host's tasks and the processes that they started."""
        assert self._ssh.stdin is not None
        if not self._is_started:
            self.kill()
        with suppress(OSError, ValueError):
            self._ssh.stdin.close()

    def kill(self, why: str = "") -> None:
        """End ssh itself, and the processes that it started on this machine."""
        self._kill_reason = self._kill_reason or why
        if self._ssh.poll() is None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._ssh.pid, signal.SIGKILL)

    def join(self, seconds: float) -> None:
        """Wait until all events are in the queue."""
        self._thread.join(seconds)

    def _send_orders(self, text: bytes) -> None:
        assert self._ssh.stdin is not None
        with suppress(OSError, ValueError):  # ssh has ended; its output has the reason
            self._ssh.stdin.write(text)
            self._ssh.stdin.flush()
        self._is_started = True
        self._send_pending()

    def _send_pending(self) -> None:
        assert self._ssh.stdin is not None
        with suppress(IndexError):
            while True:
                number = self._pending.popleft()
                with suppress(OSError, ValueError):  # the tasks have ended or are being ended
                    os.write(self._ssh.stdin.fileno(), f"{number:d}\n".encode())

    def _read_events(self) -> None:
        assert self._ssh.stdout is not None
        assert self._ssh.stderr is not None
        stderr = threading.Thread(target=self._forward_stderr, args=(self._ssh.stderr,), daemon=True)
        stderr.start()
        running, unstarted = set(self._ranks), set(self._ranks)
        with self._ssh.stdout as stdout:
            for line in read_lines(stdout):
                own, mark, text = line.partition(supervisor.MARK)
                event = parse_event(text, running) if mark else None
                if event is None and (rest := f"{own} {text}".rstrip()):
                    self._events.put(Output(self._host, None, rest, "stdout"))
                elif own.strip():
                    self._events.put(Output(self._host, None, own, "stdout"))
                if event is None:
                    continue
                rank, kind, what = event
                unstarted.discard(rank)
                self.has_started = not unstarted
                if kind == "ended":
                    running.remove(rank)
                    self._events.put(Ended(self._host, rank, int(what)))
                elif kind != "started":
                    stream: Literal["stdout", "stderr"] = "stdout" if kind == "stdout" else "stderr"
                    self._events.put(Output(self._host, rank, str(what), stream))
        stderr.join(END_SECONDS)
        with suppress(subprocess.TimeoutExpired):
            self._ssh.wait(END_SECONDS)
        self.kill()
        reason = self._kill_reason or f"ssh ended with status {self._ssh.wait()}"
        if self._last_line:
            reason += f": {self._last_line}"
        for rank in sorted(running):
            self._events.put(Ended(self._host, rank, None, reason))

    def _forward_stderr(self, lines: IO[bytes]) -> None:
        with lines:
            for line in read_lines(lines):
                self._last_line = line
                self._events.put(Output(self._host, None, line, "stderr"))


def read_lines(lines: IO[bytes]) -> Iterator[str]:
    """The lines of a stream without line ends; lines longer than `LINE_BYTES` are split."""
    while line := lines.readline(LINE_BYTES):
        yield line.decode(errors="replace").rstrip("\r\n")


def parse_event(text: str, running: Collection[int]) -> tuple[int, str, str | int] | None:
    """The supervisor's message on a running task: rank, kind and content; None for any other text."""
    try:
        rank, kind, what = json.loads(text)
    except (ValueError, TypeError, RecursionError):
        return None
    if type(rank) is not int or rank not in running or not isinstance(kind, str):
        return None
    fits = type(what) is int if kind in ("ended", "started") else isinstance(what, str)
    return (rank, kind, what) if fits and kind in supervisor.KINDS else None


def _order(task: Task) -> dict[str, Any]:
    return {"rank": task.rank, "argv": list(task.argv), "env": dict(task.env), "cwd": task.cwd}
