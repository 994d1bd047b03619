"""Namespaces for a cluster's processes: commands can enter them, and they end with their starter."""

import functools
import os
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

SHARED = ("sh", "-c", "echo ready; exec env --ignore-signal=CHLD cat")
"""The first process in this machine's network: it collects orphans until its input ends."""

WATCH = """echo ready; cat
while pids=$(grep -lszxF "$1" /proc/[0-9]*/environ | cut -d/ -f3) && [ "$pids" ]; do kill -9 $pids; done"""
"""Used without namespaces: when its input ends, it kills the processes with the mark until none is left."""


class Command(subprocess.Popen[str]):
    """A command in an enclosure; signals are sent to it, not to the nsenter process that waits for it."""

    def send_signal(self, sig: int) -> None:
        """Send a signal; kill() and terminate() use this."""
        entered = isinstance(self.args, list) and self.args[0] == "nsenter"
        inside = children(self.pid) if entered else []
        if inside:
            kill(inside, sig)
        else:
            super().send_signal(sig)


class Enclosure:
    """Contains processes with a mark in their environment; none of them outlives this process.

    They are in a process namespace, which the kernel clears when its first process ends. The first process
    ends when its input ends, and this process has the other end of the pipe. Without namespaces, a separate
    process waits for the end of the input instead, and then kills the processes with the mark.

    Args:
        mark: an environment variable, as NAME=VALUE.
        first: the namespace's first process; it prints "ready" and runs until its input ends.
        kinds: further kinds of namespaces, by the names of unshare.
    """

    def __init__(self, mark: str, first: Sequence[str] = SHARED, kinds: Sequence[str] = ()) -> None:
        self.mark = mark
        self.has_namespace = may_unshare(*kinds)
        self._kinds = kinds
        command = [*_unshare(kinds), *first] if self.has_namespace else ["sh", "-c", WATCH, "sh", mark]
        self._started: list[subprocess.Popen[str]] = []
        self._holder = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C must reach only this process, which then ends the others
        )
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == "ready\n", f"{command} has failed"
        self._first = children(self._holder.pid)[0] if self.has_namespace else 0

    def enter(self, cwd: Path | str) -> list[str]:
        """Return the prefix of a command that runs inside; it ends with `env`."""
        env = ["env", f"--chdir={cwd}"]
        if not self.has_namespace:
            return env
        kinds = [f"--{kind}" for kind in ("pid", "mount", *self._kinds)]
        user = [] if os.geteuid() == 0 else ["--user", "--preserve-credentials"]
        return ["nsenter", f"--target={self._first}", *user, *kinds, *env]

    def start(self, argv: Sequence[str], cwd: Path | str | None, **options: Any) -> Command:
        """Start a command inside; the options are those of Popen."""
        command = Command([*self.enter(cwd or Path.cwd()), *argv], text=True, **options)
        self._started.append(command)
        return command

    def forget(self, command: Command) -> None:
        """Remove a command that has ended from the list."""
        self._started.remove(command)

    def processes(self) -> dict[int, dict[str, str]]:
        """Return the environment of each process with the mark, by its process id outside the namespace."""
        name, _, value = self.mark.partition("=")
        return {
            pid: environment for pid, environment in environments().items() if environment.get(name) == value
        }

    def close(self) -> None:
        """Kill all processes inside."""
        for process in (self._holder, *self._started):
            if process.stdin is not None:
                process.stdin.close()
            process.wait()
            for stream in (process.stdout, process.stderr):
                if stream is not None:
                    stream.close()


@functools.cache
def may_unshare(*kinds: str) -> bool:
    """Return whether this process may create a process namespace and namespaces of these kinds."""
    return subprocess.run([*_unshare(kinds), "true"], capture_output=True, check=False).returncode == 0


def _unshare(kinds: Sequence[str]) -> list[str]:
    user = [] if os.geteuid() == 0 else ["--user", "--map-current-user"]
    kill_child = ["--fork", "--pid", "--mount-proc", "--kill-child"]
    return ["unshare", *user, *kill_child, *(f"--{kind}" for kind in kinds)]


def environments() -> dict[int, dict[str, str]]:
    """Return the initial environment of each process of this machine that is readable."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):  # it has ended, or is another user's
            fields = path.read_bytes().decode(errors="replace").split("\0")
            found[int(path.parent.name)] = dict(field.split("=", 1) for field in fields if "=" in field)
    return found


def parent(pid: int) -> int:
    """Return a process's parent; 0 if the process has ended."""
    with suppress(FileNotFoundError, ProcessLookupError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return 0


def children(pid: int) -> list[int]:
    """Return a process's children."""
    return [child for path in Path("/proc").glob("[0-9]*") if parent(child := int(path.name)) == pid]


def kill(pids: Sequence[int], sig: int = signal.SIGKILL) -> None:
    """Send a signal to processes, some of which may have ended."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, sig)
