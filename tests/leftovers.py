"""Finds and ends the processes that a test started and did not end, and fails the test.

A process belongs to a test if it started during the test and one of these holds: its nearest older ancestor
is pytest itself; or it is an orphan, and has the session's mark in its environment or a working directory in
a folder of the session. Descendants of an older process, such as a cluster's daemon, belong to a fixture.
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
"""The environment variable that marks the session's processes."""

OWNED: set[int] = set()
"""Processes that were started during a test but belong to a fixture of wider scope."""

HELPERS: set[int] = set()
"""Processes of a fixture of wider scope that start processes for tests; these belong to the tests."""

GRACE = 5.0
"""Seconds that a process is given to end by itself."""


class Leftovers:
    """The plugin of one pytest process, which may be an xdist worker."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._mark = f"{MARK}={os.getpid()}-{time.monotonic_ns()}"
        os.environ[MARK] = self._mark.partition("=")[2]
        self._older: set[int] = set()

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, object, object]:
        """Record the processes that exist before the test."""
        self._older = set(_processes())
        return (yield)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Generator[None, object, object]:
        """After the fixtures' teardown, end the leftover processes and fail the test if there are any."""
        result = yield
        if left := self._left():
            for pid in left:
                _kill(pid)
            pytest.fail(
                "left behind: " + "; ".join(f"{pid} {name}" for pid, name in left.items()), pytrace=False
            )
        return result

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """End the leftover processes of the whole session and report them."""
        if getattr(self._config.option, "numprocesses", None):
            return  # each worker ends its own processes
        self._older = set()
        for pid, name in self._left().items():
            _kill(pid)
            print(f"\nleft behind by the session: {pid} {name}", file=sys.stderr)
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def _left(self) -> dict[int, str]:
        """Return the test's processes that still exist after the grace period, by process id."""
        deadline = time.monotonic() + GRACE
        while left := dict(self._started()):
            if time.monotonic() > deadline:
                return left
            time.sleep(0.02)
        return {}

    def _started(self) -> Iterator[tuple[int, str]]:
        """Return the running processes that belong to the test."""
        mine = {os.getpid(), *_helpers()}
        for pid in set(_processes()) - self._older - mine:
            line = list(_line(pid))
            if not line or OWNED & {*line}:  # it has ended, or belongs to a fixture
                continue
            nearest = next((each for each in line if each in mine | self._older), None)
            if nearest in mine or (os.getpid() not in line and self._is_ours(pid)):
                yield pid, _name(pid)

    def _folder(self) -> Path:
        """Return the folder that contains the session's temporary folders."""
        base: Path = self._config._tmp_path_factory.getbasetemp()  # type: ignore[attr-defined]
        return base

    def _is_ours(self, pid: int) -> bool:
        """Return whether an orphaned process belongs to this session."""
        try:
            if self._mark.encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                return True
            return Path(f"/proc/{pid}/cwd").readlink().is_relative_to(self._folder())
        except OSError:  # it has ended, or is another user's
            return False


def configure(config: pytest.Config) -> None:
    """Register the plugin, and make signals end the session with a teardown of its fixtures."""
    # If SIGINT is ignored at the start, as in a script's `make test &`, children would inherit this.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, _interrupt)
    if sys.platform == "linux":
        config.pluginmanager.register(Leftovers(config), "leftovers")


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _processes() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]


def _helpers() -> set[int]:
    """Return multiprocessing's own helper processes, which end with this process, and `HELPERS`."""
    found = HELPERS | {forkserver._forkserver._forkserver_pid, resource_tracker._resource_tracker._pid}  # type: ignore[attr-defined]
    return {pid for pid in found if pid is not None}


def _parent(pid: int) -> int | None:
    """Return the parent's process id, or None if the process has ended."""
    try:
        state, parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
    except (OSError, ValueError):
        return None
    return None if state in "ZX" else int(parent)


def _line(pid: int) -> Iterator[int]:
    """Return the process and its ancestors, up to one that has ended."""
    while (parent := _parent(pid)) is not None:
        yield pid
        pid = parent


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
