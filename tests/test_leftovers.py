"""Tests that a test with a leftover process fails with the process's name, and that the process is ended."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from launcher import PATIENCE, is_gone, outside, until

TESTS = Path(__file__).parent

LEAVING = """
import os, pathlib, subprocess, sys, signal
import pytest

def start(**options):
    process = subprocess.Popen(["sleep", "300"], **options)
    with open("pids", "a") as file:
        file.write(f"{process.pid}\\n")
    return process

@pytest.fixture(scope="session")
def daemon():
    process = start()
    yield process
    process.kill()
    process.wait()

def test_that_uses_a_daemon(daemon): pass

def test_that_leaves_a_child(daemon):
    start()

def test_that_leaves_an_orphan():
    subprocess.run(["sh", "-c", "sleep 300 >/dev/null 2>&1 & echo $! >> pids"], check=True)

def test_that_fails_and_leaves_a_child():
    start()
    assert False

def test_that_leaves_nothing():
    with start() as process:
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == -signal.SIGINT
"""


@pytest.fixture
def session(tmp_path: Path) -> Path:
    """Return a folder with its own tests that use the conftest of these tests."""
    (tmp_path / "test_leaving.py").write_text(LEAVING)
    (tmp_path / "conftest.py").write_text(
        "import leftovers\n\nleftovers.GRACE = 0.5\npytest_configure = leftovers.configure\n"
    )
    return tmp_path


@pytest.mark.parametrize("workers", ["0", "1"])
def test_processes_that_a_test_leaves_behind_are_named_and_ended(session: Path, workers: str) -> None:
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-n",
        workers,
        "-p",
        "no:cacheprovider",
        "--basetemp=base",
    ]
    # A shell starts a command with `&` with SIGINT ignored, which children would inherit.
    done = subprocess.run(
        command,
        cwd=session,
        env={**outside(), "PYTHONPATH": str(TESTS)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )
    assert done.returncode == 1, done.stdout
    assert "4 passed, 1 failed, 3 errors" in done.stdout.replace("1 failed, 4 passed", "4 passed, 1 failed")
    pids = [int(line) for line in (session / "pids").read_text().split()]
    assert len(pids) == 5
    until(lambda: all(map(is_gone, pids)))
    assert sum(f"left behind: {pid} sleep 300" in done.stdout for pid in pids) == 3
    assert os.getpid() not in pids
