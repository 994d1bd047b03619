"""Tests that `sage run` ends with a result or one line in any environment of a shell or launcher."""

import json
import re
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import environments
import pytest
from fuzz import examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from launcher import PATIENCE, outside

CHECKOUT = Path(__file__).parents[2]
RUN = "run digits-ff --world-size 1 --steps 1 --timeout 2"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty folder for the runs of this module."""
    return tmp_path_factory.mktemp("environments")


def started(folder: Path, variables: dict[str, str], how: str) -> subprocess.CompletedProcess[bytes]:
    """A run in its own process, whose only rank variables are the given ones."""
    return subprocess.run(
        [sys.executable, "-m", "sage", *RUN.split(), "--runs", str(folder / "runs"), how],
        cwd=folder,
        env={**outside(), "PYTHONPATH": str(CHECKOUT), "SAGE_DATA_DIR": str(folder), **variables},
        capture_output=True,
        timeout=PATIENCE,
        check=False,
    )


@settings(
    max_examples=min(200, examples(3)),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(environments.mixed(), st.sampled_from(["--print-config", "--fresh"]))
def test_a_run_under_any_environment_ends_with_a_result_or_one_line(
    folder: Path, environ: dict[str, str], how: str
) -> None:
    variables = {name: value for name, value in environ.items() if "\0" not in value}  # execve accepts no NUL
    process = started(folder, variables, how)
    message = process.stderr.decode()
    assert process.returncode in (0, 1, 2), (process.returncode, message)
    if process.returncode:
        assert len(message.splitlines()) == 1, message
        line = message.rstrip("\n")
        assert re.match(r"sage( run)?: \S", line), line
        assert line.isprintable(), repr(line)
        assert "Traceback" not in line
        assert "bug in SAGE" not in line
    elif how == "--print-config":
        assert json.loads(process.stdout)["config"]["steps"] == 1
    else:
        assert b"finished: " in process.stdout + process.stderr, message


def test_another_service_at_the_port_is_a_one_line_error(folder: Path) -> None:
    """Answer in HTTP, like a proxy: torch's store would also print its own stack trace."""
    over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.2)

        def answer() -> None:
            while not over.is_set():
                with suppress(OSError):
                    connection, _ = listener.accept()
                    with connection:
                        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n" * 4)
                        connection.recv(4096)

        thread = threading.Thread(target=answer)
        thread.start()
        variables = {
            "hostip": "127.0.0.1",
            "port": str(listener.getsockname()[1]),
            "rank": "1",
            "world_size": "2",
        }
        done = started(folder, variables, "--fresh")
        over.set()
        thread.join()
    message = done.stderr.decode()
    assert done.returncode == 1
    assert len(message.splitlines()) == 1, message
    assert "so another program uses the port" in message
