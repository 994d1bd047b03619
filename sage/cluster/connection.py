"""One ssh to one host: what it is to start there, and what comes through it, checked and in bounded lines."""

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

FAREWELL = 5.0
"""Seconds that ssh has to come back once its tasks have been ended."""

LINE_BYTES = 256 * 1024
"""The longest line that is taken as one; a keeper breaks the lines of its tasks much earlier."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """A process to run on a host."""

    host: str
    """As ssh takes it."""
    rank: int
    """Its number among all tasks."""
    argv: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)
    """Goes on top of what sshd gives."""
    cwd: str | None = None
    """None: where ssh arrives."""


@dataclass(frozen=True)
class Said:
    """A line of a task's; or the host's own, with `rank` None: what ssh or a login script has to say."""

    host: str
    rank: int | None
    text: str
    stream: Literal["stdout", "stderr"]


@dataclass(frozen=True)
class Ended:
    """A task's end, told once for each."""

    host: str
    rank: int
    status: int | None
    """Exit status; negative: ended by that signal; None: ssh did not reach the host, or lost it."""
    reason: str = ""
    """With None: ssh's exit status, and the last that it, or the shell there, had to say."""


class Line:
    """The ssh to one host, and what comes through it."""

    def __init__(
        self, host: str, argv: Sequence[str], tasks: Sequence[Task], events: "queue.SimpleQueue[Said | Ended]"
    ) -> None:
        self._host, self._events = host, events
        self._ranks = [task.rank for task in tasks]
        self._pending: deque[int] = deque()
        self._is_fed = False
        self._last_words = ""
        self._given_up = ""
        self.has_started = False
        """Whether all of the host's tasks have been started, or could not be."""
        try:
            self._ssh = subprocess.Popen(
                argv,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                # The terminal's signals are for us to hand on, and not for ssh to die of.
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            raise ValueError(f"cannot start {argv[0]}: {error}; install ssh, or say --ssh") from error
        orders = [Path(supervisor.__file__).read_text(), [_order(task) for task in tasks]]
        text = "".join(json.dumps(part) + "\n" for part in orders).encode()
        # In threads: an ssh that hangs reads nothing and says nothing.
        threading.Thread(target=self._feed, args=(text,), daemon=True).start()
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def signal(self, number: int) -> None:
        """Send the host's tasks a signal, once they have been started."""
        self._pending.append(number)
        if self._is_fed:
            self._send_pending()

    def hang_up(self) -> None:
        """End the host's tasks, with what they started."""
        assert self._ssh.stdin is not None
        if not self._is_fed:
            self.kill()
        with suppress(OSError, ValueError):
            self._ssh.stdin.close()

    def kill(self, why: str = "") -> None:
        """End ssh itself, and what it may have started here."""
        self._given_up = self._given_up or why
        if self._ssh.poll() is None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._ssh.pid, signal.SIGKILL)

    def join(self, seconds: float) -> None:
        """Wait until all that came through has been told."""
        self._thread.join(seconds)

    def _feed(self, text: bytes) -> None:
        assert self._ssh.stdin is not None
        with suppress(OSError, ValueError):  # ssh has ended already, and says why
            self._ssh.stdin.write(text)
            self._ssh.stdin.flush()
        self._is_fed = True
        self._send_pending()

    def _send_pending(self) -> None:
        assert self._ssh.stdin is not None
        with suppress(IndexError):
            while True:
                number = self._pending.popleft()
                with suppress(OSError, ValueError):  # the tasks have ended, or are being ended
                    os.write(self._ssh.stdin.fileno(), f"{number:d}\n".encode())

    def _listen(self) -> None:
        assert self._ssh.stdout is not None
        assert self._ssh.stderr is not None
        complaints = threading.Thread(target=self._repeat, args=(self._ssh.stderr,), daemon=True)
        complaints.start()
        running, unstarted = set(self._ranks), set(self._ranks)
        with self._ssh.stdout as stdout:
            for line in read_lines(stdout):
                own, mark, text = line.partition(supervisor.MARK)
                event = told(text, running) if mark else None
                if event is None and (rest := f"{own} {text}".rstrip()):
                    self._events.put(Said(self._host, None, rest, "stdout"))
                elif own.strip():
                    self._events.put(Said(self._host, None, own, "stdout"))
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
                    self._events.put(Said(self._host, rank, str(what), stream))
        complaints.join(FAREWELL)
        with suppress(subprocess.TimeoutExpired):
            self._ssh.wait(FAREWELL)
        self.kill()
        reason = self._given_up or f"ssh ended with status {self._ssh.wait()}"
        if self._last_words:
            reason += f": {self._last_words}"
        for rank in sorted(running):
            self._events.put(Ended(self._host, rank, None, reason))

    def _repeat(self, lines: IO[bytes]) -> None:
        with lines:
            for line in read_lines(lines):
                self._last_words = line
                self._events.put(Said(self._host, None, line, "stderr"))


def read_lines(lines: IO[bytes]) -> Iterator[str]:
    """The lines of a stream without their ends; one of over `LINE_BYTES` comes in pieces of that size."""
    while line := lines.readline(LINE_BYTES):
        yield line.decode(errors="replace").rstrip("\r\n")


def told(text: str, running: Collection[int]) -> tuple[int, str, str | int] | None:
    """What a keeper has said of a task that runs: its rank, the kind, and what; None for anything else."""
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
