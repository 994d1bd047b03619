"""Tasks on other hosts, each host's over one ssh: what they say and how they end, as one stream of events."""

import json
import os
import queue
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal, Self

import sage
from sage.nodes import keeper

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

FAREWELL = 5.0
"""Seconds that ssh has to come back once its tasks have been ended."""

BOOT = "import json, sys; exec(json.loads(sys.stdin.readline()))"
"""Reads the keeper's text, so that no shell on the way has to understand it."""


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


class Crew:
    """Tasks that run on their hosts, while this context lasts and this process lives.

    Iterating over it gives the events until every task has ended. One that fails does not end the others.

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
        self._running = {task.rank for task in tasks}
        self._events: queue.SimpleQueue[Said | Ended] = queue.SimpleQueue()
        self._deadline: float | None = None
        self._last_words: dict[str, str] = {}
        self._lines: list[tuple[subprocess.Popen[str], threading.Thread]] = []
        options = [word for option in OPTIONS for word in ("-o", option)]
        command = f"exec {shlex.quote(python)} -I -c {shlex.quote(BOOT)}"
        for host in dict.fromkeys(task.host for task in tasks):
            here = [task for task in tasks if task.host == host]
            self._connect(host, [*ssh, "-T", *options, "--", host, command], here)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hang_up()
        patience = time.monotonic() + FAREWELL
        for ssh, thread in self._lines:
            thread.join(max(0.0, patience - time.monotonic()))
            ssh.kill()
            thread.join()

    def __iter__(self) -> Iterator[Said | Ended]:
        while self._running:
            left = None if self._deadline is None else self._deadline - time.monotonic()
            if left is not None and left <= 0:
                self._deadline = left = None
                self._hang_up()
            try:
                event = self._events.get(timeout=left)
            except queue.Empty:
                continue
            if isinstance(event, Ended):
                self._running.remove(event.rank)
            yield event

    def signal(self, number: int) -> None:
        """Send every task a signal; a signal handler may call this."""
        for ssh, _ in self._lines:
            assert ssh.stdin is not None
            with suppress(BrokenPipeError, ValueError):  # this host's tasks have ended, or are being ended
                os.write(ssh.stdin.fileno(), f"{number:d}\n".encode())

    def end(self, grace: float = 0.0) -> None:
        """End the tasks that still run, and all that they started, after so many seconds of iteration."""
        self._deadline = time.monotonic() + grace

    def _connect(self, host: str, argv: Sequence[str], tasks: Sequence[Task]) -> None:
        try:
            ssh = subprocess.Popen(
                argv,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                encoding="utf-8",
                errors="replace",
                # The terminal's signals are for us to hand on, and not for ssh to die of.
                start_new_session=True,
            )
        except OSError as error:
            raise ValueError(f"cannot start {argv[0]}: {error}; install ssh, or say --ssh") from error
        thread = threading.Thread(target=self._listen, args=(host, ssh, [task.rank for task in tasks]))
        thread.start()
        self._lines.append((ssh, thread))
        assert ssh.stdin is not None
        with suppress(BrokenPipeError):  # ssh has ended already, and says why
            for part in (Path(keeper.__file__).read_text(), [_order(task) for task in tasks]):
                ssh.stdin.write(json.dumps(part) + "\n")
            ssh.stdin.flush()

    def _hang_up(self) -> None:
        for ssh, _ in self._lines:
            assert ssh.stdin is not None
            with suppress(BrokenPipeError):
                ssh.stdin.close()

    def _listen(self, host: str, ssh: subprocess.Popen[str], running: list[int]) -> None:
        assert ssh.stdout is not None
        assert ssh.stderr is not None
        complaints = threading.Thread(target=self._repeat, args=(host, ssh.stderr))
        complaints.start()
        with ssh.stdout:
            for line in ssh.stdout:
                own, mark, told = line.partition(keeper.MARK)
                if own.strip():
                    self._events.put(Said(host, None, own.rstrip("\n"), "stdout"))
                if not mark:
                    continue
                rank, kind, what = json.loads(told)
                if kind == "ended":
                    running.remove(rank)
                    self._events.put(Ended(host, rank, what))
                else:
                    self._events.put(Said(host, rank, what, kind))
        complaints.join()
        reason = f"ssh ended with status {ssh.wait()}"
        if host in self._last_words:
            reason += f": {self._last_words[host]}"
        for rank in running:
            self._events.put(Ended(host, rank, None, reason))

    def _repeat(self, host: str, lines: IO[str]) -> None:
        with lines:
            for line in lines:
                self._last_words[host] = line.rstrip("\n")
                self._events.put(Said(host, None, line.rstrip("\n"), "stderr"))


def surroundings() -> dict[str, str]:
    """Variables for a rank elsewhere: this checkout, so that it is found there too, and what we were told."""
    told = {name: value for name, value in os.environ.items() if name.startswith(TOLD)}
    checkout = Path(sage.__file__).parents[1]
    paths = [str(checkout)] if (checkout / "pyproject.toml").exists() else []
    paths += filter(None, [os.environ.get("PYTHONPATH")])
    search = {"PYTHONPATH": os.pathsep.join(paths)} if paths else {}
    # A folder called sage in the working directory must not stand in front; output is wanted as it comes.
    return {**told, **search, "PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1"}


def _order(task: Task) -> dict[str, Any]:
    return {"rank": task.rank, "argv": list(task.argv), "env": dict(task.env), "cwd": task.cwd}
