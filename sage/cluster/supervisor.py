"""Keeps the tasks of one host: starts them, tells what they say, and lets none outlive its standard input.

This file's text is what `remote` hands to a bare Python at the far end of ssh, so it imports nothing but the
standard library. Standard input brings the orders, one line of JSON, and from then on a signal's number a
line; when it ends, since the tasks are to end or since the launcher or the connection has died, so do they.
Standard output is JSON texts as in RFC 7464, which nothing that a login script prints can be mistaken for.
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
"""What is told of a task: that it runs as this process, a line of either stream, and its exit status."""

LINE_LETTERS = 16 * 1024
"""The longest line of a task that is told as one; a longer one comes in pieces."""

LINGER = 2.0
"""Seconds to go on listening to a task that has ended: a process that left its group may hold its pipes."""

SIGNALS = frozenset(int(number) for number in signal.valid_signals())

TELLING = threading.Lock()


def main() -> None:
    """Keep the tasks until all have ended."""
    orders = json.loads(sys.stdin.readline())
    # All are started before the first thread is: a fork copies no thread, but the locks that it holds.
    tasks = [task for order in orders if (task := _start(order)) is not None]
    for task in tasks:
        _say(task.rank, "started", task.pid)
    threads = [threading.Thread(target=task.follow) for task in tasks]
    for thread in threads:
        thread.start()
    threading.Thread(target=_obey, args=(tasks,), daemon=True).start()
    for thread in threads:
        thread.join()
    # An orderly exit would wait for the lock on standard input, which the thread that reads it holds.
    os._exit(0)


class _Task:
    """A process, the leader of a group of its own."""

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
        """The process's number."""
        return self._process.pid

    def follow(self) -> None:
        """Repeat what the process says until it ends, end what it leaves behind, and tell its exit status."""
        streams = {"stdout": self._process.stdout, "stderr": self._process.stderr}
        listening = [
            threading.Thread(target=_repeat, args=(self.rank, name, stream), daemon=True)
            for name, stream in streams.items()
        ]
        for thread in listening:
            thread.start()
        # Until its status is asked for, the leader's number stays its own, and with it that of the group.
        os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
        self.kill()
        with self._ended:
            status = self._process.wait()
        for thread in listening:
            thread.join(LINGER)
        _say(self.rank, "ended", status)

    def signal(self, number: int) -> None:
        """Send the process a signal, unless it has ended."""
        with self._ended:
            if self._process.returncode is None:
                os.kill(self._process.pid, number)

    def kill(self) -> None:
        """End the process and all of its group, unless that has been done."""
        with self._ended:
            if self._process.returncode is None:
                os.killpg(self._process.pid, signal.SIGKILL)


def _start(order: dict[str, Any]) -> _Task | None:
    try:
        return _Task(order)
    except OSError as error:
        _say(order["rank"], "stderr", f"cannot start {order['argv'][0]} in {order['cwd'] or '.'}: {error}")
        _say(order["rank"], "ended", 127)
        return None


def _obey(tasks: list[_Task]) -> None:
    for line in sys.stdin:
        number = int(line) if line.strip().isdecimal() and len(line) < 5 else 0
        if number in SIGNALS:
            for task in tasks:
                task.signal(number)
    for task in tasks:
        task.kill()


def _repeat(rank: int, stream: str, lines: IO[str]) -> None:
    while line := lines.readline(LINE_LETTERS):
        _say(rank, stream, line.rstrip("\n"))


def _say(rank: int, kind: str, what: str | int) -> None:
    with TELLING:
        try:
            print(MARK + json.dumps([rank, kind, what]), flush=True)
        except BrokenPipeError:  # nobody listens any more; then standard input has ended too, or is about to
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def die_with_parent(number: int = signal.SIGKILL) -> None:
    """Have the kernel signal this process when the thread that started it ends, where the kernel is Linux."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, number)  # PR_SET_PDEATHSIG


if __name__ == "__main__":
    main()
