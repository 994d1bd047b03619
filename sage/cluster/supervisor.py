"""Supervises the tasks of one host: starts them, forwards their output, and ends them with standard input.

`remote` passes the source of this file to a Python on the host through ssh, so it imports the standard
library only. Standard input has one line of JSON with the tasks, then one signal number per line. At its end
the tasks are ended: the launcher has asked for it, or the launcher or the connection has died. Standard
output consists of JSON texts as in RFC 7464, which the output of a login script cannot be mistaken for.
"""

import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
from typing import IO, Any

MARK = "\x1e"
"""Begins each line that this file writes."""

KINDS = ("started", "stdout", "stderr", "ended")
"""Kinds of messages on a task: its process id, a line of either stream, and its exit status."""

LINE_LETTERS = 16 * 1024
"""The longest line of a task in characters; longer lines are split."""

LINGER = 2.0
"""Seconds to read a task's output after its end: a process that left its group may keep its pipes open."""

SIGNALS = frozenset(int(number) for number in signal.valid_signals())

WRITING = threading.Lock()


def main() -> None:
    """Start the tasks and wait until all have ended."""
    orders = json.loads(sys.stdin.readline())
    # All tasks are started before the first thread, because a fork copies locks held by threads.
    tasks = [task for order in orders if (task := _start(order)) is not None]
    for task in tasks:
        _send(task.rank, "started", task.pid)
    threads = [threading.Thread(target=task.follow) for task in tasks]
    for thread in threads:
        thread.start()
    threading.Thread(target=_forward_signals, args=(tasks,), daemon=True).start()
    for thread in threads:
        thread.join()
    # A regular exit would wait for the lock on standard input, which the reading thread holds.
    os._exit(0)


class _Task:
    """A process that leads its own process group."""

    def __init__(self, order: dict[str, Any]) -> None:
        self.rank = order["rank"]
        self._ended = threading.Lock()
        self._process = subprocess.Popen(
            order["argv"],
            cwd=order["cwd"],
            env={**os.environ, **order["env"]},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
            preexec_fn=die_with_parent,
        )

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def follow(self) -> None:
        """Forward the process's output until it ends, end the rest of its group, and send its exit status."""
        streams = {"stdout": self._process.stdout, "stderr": self._process.stderr}
        listening = [
            threading.Thread(target=_forward_lines, args=(self.rank, name, stream), daemon=True)
            for name, stream in streams.items()
        ]
        for thread in listening:
            thread.start()
        # Until its status is collected, the leader's process id, and so the group's id, is not reused.
        os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
        self.kill()
        with self._ended:
            status = self._process.wait()
        for thread in listening:
            thread.join(LINGER)
        _send(self.rank, "ended", status)

    def signal(self, number: int) -> None:
        """Send a signal to the process, unless it has ended."""
        with self._ended:
            if self._process.returncode is None:
                os.kill(self._process.pid, number)

    def kill(self) -> None:
        """Kill the process and its group, unless they have ended."""
        with self._ended:
            if self._process.returncode is None:
                os.killpg(self._process.pid, signal.SIGKILL)


def _start(order: dict[str, Any]) -> _Task | None:
    try:
        return _Task(order)
    except OSError as error:
        _send(order["rank"], "stderr", f"cannot start {order['argv'][0]} in {order['cwd'] or '.'}: {error}")
        _send(order["rank"], "ended", 127)
        return None


def _forward_signals(tasks: list[_Task]) -> None:
    for line in sys.stdin:
        number = int(line) if line.strip().isdecimal() and len(line) < 5 else 0
        if number in SIGNALS:
            for task in tasks:
                task.signal(number)
    for task in tasks:
        task.kill()


def _forward_lines(rank: int, stream: str, lines: IO[str]) -> None:
    while line := lines.readline(LINE_LETTERS):
        _send(rank, stream, line.rstrip("\n"))


def _send(rank: int, kind: str, what: str | int) -> None:
    with WRITING:
        try:
            print(MARK + json.dumps([rank, kind, what]), flush=True)
        except BrokenPipeError:  # the connection is closed, and standard input ends too
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def die_with_parent(number: int = signal.SIGKILL) -> None:
    """On Linux, make the kernel signal this process when the thread that started it ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, number)  # PR_SET_PDEATHSIG


if __name__ == "__main__":
    main()
