"""Tests that a forked command has a process's arguments, folder, environment, streams, signals and status."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from launcher import num_steps, until

Sage = Callable[..., subprocess.CompletedProcess[str]]


def test_arguments_folder_environment_streams_and_status_are_those_of_a_process(
    sage: Sage, tmp_path: Path
) -> None:
    listed = sage("list")
    assert (listed.returncode, listed.stderr) == (0, "")
    assert "topk" in listed.stdout
    wrong = sage("run", "digits-ff", "--steps", "1", hostip="127.0.0.1", rank="0")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "port" in wrong.stderr
    (tmp_path / "mine.toml").write_text("nothing = 1\n")
    assert sage("run", "mine.toml").returncode == 2


PRINT = """import os, signal, sys
print(__name__, sys.argv[1:], sys.path[0], signal.getsignal(signal.SIGINT) is signal.SIG_IGN, sep="|")
os.umask(mask := os.umask(0))
sys.exit(mask)
"""


@pytest.mark.parametrize("argv", [["-u", "mine.py", "-m", "x"], ["-m", "mine", "-m", "x"]])
def test_a_module_and_a_file_run_as_python_runs_them(
    python_command: str, tmp_path: Path, argv: list[str]
) -> None:
    (tmp_path / "mine.py").write_text(PRINT)

    def prepare() -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        os.umask(0o27)

    forked, started = (
        subprocess.run(
            [python, *argv], cwd=tmp_path, preexec_fn=prepare, capture_output=True, text=True, check=False
        )
        for python in (python_command, sys.executable)
    )
    assert (forked.returncode, forked.stdout, forked.stderr) == (0o27, started.stdout, "")
    assert started.stdout == f"__main__|['-m', 'x']|{tmp_path}|True\n"


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 75), (signal.SIGINT, 75), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_a_signal_to_the_client_ends_the_command(
    sage_command: str, tmp_path: Path, number: signal.Signals, status: int
) -> None:
    argv = [sage_command, "run", "digits-ff", "--epochs", "100000", "--world-size", "1", "--runs", "."]
    with subprocess.Popen(argv, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as client:
        try:
            until(lambda: num_steps(tmp_path) > 0 or client.poll() is not None)
            client.send_signal(number)
            _, said = client.communicate(timeout=120)
        finally:
            client.kill()
    assert client.returncode == status, said
