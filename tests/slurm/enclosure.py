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
"""The first process, where the network is this machine's: it collects orphans until its input ends."""

WATCH = """echo ready; cat
while pids=$(grep -lszxF "$1" /proc/[0-9]*/environ | cut -d/ -f3) && [ "$pids" ]; do kill -9 $pids; done"""
"""What stands in for a namespace: once its input ends, it kills who bears the mark, until there is none."""


class Command(subprocess.Popen[str]):
    """A command in an enclosure; signals go to itself, not to the nsenter that waits for it."""

    def send_signal(self, sig: int) -> None:
        """Send a signal, as kill() and terminate() do."""
        entered = isinstance(self.args, list) and self.args[0] == "nsenter"
        inside = children(self.pid) if entered else []
        if inside:
            kill(inside, sig)
        else:
            super().send_signal(sig)


class Enclosure:
    """Holds processes that bear a mark in their environment, and lets none of them outlive this process.

    They are in a process namespace, which the kernel clears when its first process ends; and that one ends
    with its input, of which this process holds the other end. Where no namespace may be made, a watch waits
    for that instead, and then seeks the marked ones out.

    Args:
        mark: a variable of the environment, as NAME=VALUE.
        first: the namespace's first process; it says "ready" and stays until its input ends.
        kinds: of further namespaces for it, as unshare names them.
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
            start_new_session=True,  # Ctrl-C is for this process, which then ends the others
        )
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == "ready\n", f"{command} has failed"
        self._first = children(self._holder.pid)[0] if self.has_namespace else 0

    def enter(self, cwd: Path | str) -> list[str]:
        """What to put before a command that is to run inside; it ends in an `env`."""
        env = ["env", f"--chdir={cwd}"]
        if not self.has_namespace:
            return env
        kinds = [f"--{kind}" for kind in ("pid", "mount", *self._kinds)]
        user = [] if os.geteuid() == 0 else ["--user", "--preserve-credentials"]
        return ["nsenter", f"--target={self._first}", *user, *kinds, *env]

    def start(self, argv: Sequence[str], cwd: Path | str | None, **options: Any) -> Command:
        """Start a command inside; options are Popen's."""
        command = Command([*self.enter(cwd or Path.cwd()), *argv], text=True, **options)
        self._started.append(command)
        return command

    def forget(self, command: Command) -> None:
        """Know no longer of a command that has ended."""
        self._started.remove(command)

    def processes(self) -> dict[int, dict[str, str]]:
        """The environment of each marked process, by the process id that it has out here."""
        name, _, value = self.mark.partition("=")
        return {
            pid: environment for pid, environment in environments().items() if environment.get(name) == value
        }

    def close(self) -> None:
        """Kill all that is inside."""
        for process in (self._holder, *self._started):
            if process.stdin is not None:
                process.stdin.close()
            process.wait()
            for stream in (process.stdout, process.stderr):
                if stream is not None:
                    stream.close()


@functools.cache
def may_unshare(*kinds: str) -> bool:
    """Whether this process may make a process namespace and others of these kinds."""
    return subprocess.run([*_unshare(kinds), "true"], capture_output=True, check=False).returncode == 0


def _unshare(kinds: Sequence[str]) -> list[str]:
    user = [] if os.geteuid() == 0 else ["--user", "--map-current-user"]
    kill_child = ["--fork", "--pid", "--mount-proc", "--kill-child"]
    return ["unshare", *user, *kill_child, *(f"--{kind}" for kind in kinds)]


def environments() -> dict[int, dict[str, str]]:
    """What each process of this machine was started with, as far as it may be read."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):  # gone, or another user's
            fields = path.read_bytes().decode(errors="replace").split("\0")
            found[int(path.parent.name)] = dict(field.split("=", 1) for field in fields if "=" in field)
    return found


def parent(pid: int) -> int:
    """A process's parent; 0 where the process is gone."""
    with suppress(FileNotFoundError, ProcessLookupError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return 0


def children(pid: int) -> list[int]:
    """A process's children."""
    return [child for path in Path("/proc").glob("[0-9]*") if parent(child := int(path.name)) == pid]


def kill(pids: Sequence[int], sig: int = signal.SIGKILL) -> None:
    """Send a signal to processes, some of which may be gone."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, sig)
