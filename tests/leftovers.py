"""Finds and ends the processes that a test has started and left behind, and fails the test.

A process is a test's own where it began during the test, and one of these holds: its nearest older ancestor
is pytest itself; it has lost its parents, and has the session's mark in its environment or works in a folder
of the session. What lies below an older process, as a cluster's daemon, belongs to a fixture.
"""

import os
import signal
import sys
import time
from collections.abc import Generator, Iterator
from multiprocessing import forkserver, resource_tracker
from pathlib import Path
from types import FrameType

import pytest

MARK = "SAGE_TESTS"
"""The variable of the environment that marks the session's processes."""

OWNED: set[int] = set()
"""Processes that belong to a fixture with a longer life, although a test had them started."""

GRACE = 5.0
"""Seconds in which a process that is about to end may do so."""


class Leftovers:
    """The plugin of one pytest process, a worker of xdist included."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._mark = f"{MARK}={os.getpid()}-{time.monotonic_ns()}"
        os.environ[MARK] = self._mark.partition("=")[2]
        self._older: set[int] = set()

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, object, object]:
        """Note which processes a test has not started."""
        self._older = set(_processes())
        return (yield)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Generator[None, object, object]:
        """End what the test has left behind when its fixtures are done, and fail it."""
        result = yield
        if left := self._left():
            for pid in left:
                _kill(pid)
            pytest.fail(
                "left behind: " + "; ".join(f"{pid} {name}" for pid, name in left.items()), pytrace=False
            )
        return result

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """End what is left of the whole session, and say what it was."""
        if getattr(self._config.option, "numprocesses", None):
            return  # the workers look after their own
        self._older = set()
        for pid, name in self._left().items():
            _kill(pid)
            print(f"\nleft behind by the session: {pid} {name}", file=sys.stderr)
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def _left(self) -> dict[int, str]:
        """What the test started and has not ended, by process id, once it has had time to end."""
        deadline = time.monotonic() + GRACE
        while left := dict(self._started()):
            if time.monotonic() > deadline:
                return left
            time.sleep(0.02)
        return {}

    def _started(self) -> Iterator[tuple[int, str]]:
        """The living processes that are the test's own."""
        mine = {os.getpid(), *_helpers()}
        parents = {pid: parent for pid in _processes() if (parent := _parent(pid)) is not None}
        for pid in parents.keys() - self._older - mine:
            line = list(_line(parents[pid], parents))
            if OWNED & {pid, *line}:
                continue
            nearest = next((each for each in line if each in mine | self._older), None)
            if nearest in mine or (os.getpid() not in line and self._is_ours(pid)):
                yield pid, _name(pid)

    def _folder(self) -> Path:
        """Where the session's temporary folders are."""
        base: Path = self._config._tmp_path_factory.getbasetemp()  # type: ignore[attr-defined]
        return base

    def _is_ours(self, pid: int) -> bool:
        """Whether a process that has lost its parents is of this session."""
        try:
            if self._mark.encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                return True
            return Path(f"/proc/{pid}/cwd").readlink().is_relative_to(self._folder())
        except OSError:  # it has ended, or is another user's
            return False


def configure(config: pytest.Config) -> None:
    """Register the plugin, and have signals end the session with its fixtures torn down."""
    # Where SIGINT was ignored at the start, as in a script's `make test &`, children would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, _interrupt)
    if sys.platform == "linux":
        config.pluginmanager.register(Leftovers(config), "leftovers")


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _processes() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]


def _helpers() -> set[int]:
    """Processes of multiprocessing's own, which end with this one."""
    found = {forkserver._forkserver._forkserver_pid, resource_tracker._resource_tracker._pid}  # type: ignore[attr-defined]
    return {pid for pid in found if pid is not None}


def _parent(pid: int) -> int | None:
    """Its parent's process id; None where it has ended."""
    try:
        state, parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
    except (OSError, ValueError):
        return None
    return None if state in "ZX" else int(parent)


def _line(pid: int, parents: dict[int, int]) -> Iterator[int]:
    """The process and those above it."""
    while pid in parents:
        yield pid
        pid = parents[pid]


def _name(pid: int) -> str:
    try:
        return (
            Path(f"/proc/{pid}/cmdline")
            .read_bytes()
            .replace(b"\0", b" ")
            .decode(errors="replace")[:200]
            .strip()
        )
    except OSError:
        return ""


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
