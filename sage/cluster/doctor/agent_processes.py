"""Starts the agents of `sage doctor`, as child processes or over ssh, and reads their lines."""

import queue
import shlex
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from sage.cluster.connection import read_lines
from sage.cluster.remote import Ended, Output, RemoteTasks, Task
from sage.cluster.signals import delay_signals
from sage.cluster.supervisor import die_with_parent
from sage.output.text import clean_text

END_SECONDS = 5.0
"""Time limit for agents to exit after a request."""

Lines = queue.Queue[str | None]


class StartError(Exception):
    """The agents could not be started; has the place and a fix."""

    def __init__(self, message: str, where: str, fix: str) -> None:
        super().__init__(message)
        self.where, self.fix = where, fix


@contextmanager
def processes(
    commands: Sequence[tuple[Sequence[str], Mapping[str, str]]], cwd: Path, lines: Lines
) -> Iterator[int]:
    """Agents, or the srun that starts them, as child processes."""
    children: list[subprocess.Popen[bytes]] = []
    readers: list[threading.Thread] = []
    try:
        for command, environ in commands:
            with delay_signals():
                children.append(_start(command, environ, cwd))
            readers.append(threading.Thread(target=_read, args=(children[-1], lines), daemon=True))
            readers[-1].start()
        yield len(children)
    finally:
        _end(children)
        for reader in readers:  # processes left behind by a child may keep its pipe open
            reader.join(0.5)


def _start(command: Sequence[str], environ: Mapping[str, str], cwd: Path) -> "subprocess.Popen[bytes]":
    try:
        return subprocess.Popen(
            command,
            env=environ,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            preexec_fn=partial(die_with_parent, signal.SIGTERM),
        )
    except (OSError, ValueError) as error:
        fix = f"try `{clean_text(shlex.join(command), 200)}`"
        raise StartError(f"cannot start {command[0]}: {error}", "this machine", fix) from error


def _read(child: subprocess.Popen[bytes], lines: Lines) -> None:
    assert child.stdout is not None
    with child.stdout:
        for line in read_lines(child.stdout):
            lines.put(line)
    lines.put(None)


def _end(children: Sequence[subprocess.Popen[bytes]]) -> None:
    """Wait for the children, then terminate, then kill them, with `END_SECONDS` after each step."""
    for step in (lambda child: None, subprocess.Popen.terminate, subprocess.Popen.kill):
        end = time.monotonic() + END_SECONDS  # children that have finished need a moment to exit
        for child in children:
            if child.poll() is None:
                step(child)
        for child in children:
            with suppress(subprocess.TimeoutExpired):
                child.wait(max(0.01, end - time.monotonic()))


@contextmanager
def over_ssh(tasks: Sequence[Task], ssh: Sequence[str], python: str, lines: Lines) -> Iterator[int]:
    """Agents on other hosts, over ssh."""

    def read(remote: RemoteTasks) -> None:
        for event in remote:
            if isinstance(event, Output):
                lines.put(event.text)
            elif isinstance(event, Ended) and event.status != 0:
                lines.put(f"{event.host}: {event.reason or f'ended with status {event.status}'}")
        lines.put(None)

    with RemoteTasks(tasks, ssh=ssh, python=python) as remote:
        threading.Thread(target=read, args=(remote,), daemon=True).start()
        yield 1
