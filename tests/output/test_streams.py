"""Tests that printing never ends a run, and that a command whose output is lost reports it in one line."""

import errno
import io
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sage.cli.main import main
from sage.exit_status import message, status_of
from sage.output import streams
from sage.records.progress import Display

Sage = Callable[..., subprocess.CompletedProcess[str]]
PYTHON = (sys.executable, "-m", "sage")


class Full(io.StringIO):
    """A stream on a full disk."""

    def write(self, text: str) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


def shell(command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A command in bash, with `$SAGE` for the command line; the last status of a pipe is the first's."""
    return subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"],
        env={**os.environ, "SAGE": " ".join(PYTHON), **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_a_stream_that_fails_loses_only_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", Full())
    streams.protect()
    print("lost", flush=True)
    lost = streams.failure()
    assert lost is not None
    assert lost.errno == errno.ENOSPC
    with pytest.raises(OSError, match="No space"), streams.strict():
        print("heard")
    print("lost again")


def test_protecting_twice_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    streams.protect()
    once = sys.stdout
    streams.protect()
    assert sys.stdout is once


def test_characters_that_an_encoding_lacks_are_written_in_ascii(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    streams.protect()
    print("a – b → λ ü", "bad \udce9 name", flush=True)
    assert written.getvalue() == b"a - b -> lambda \\xfc bad \\udce9 name\n"


@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ],
)
def test_every_locale_can_list_the_parts(sage: Sage, environment: dict[str, str]) -> None:
    done = sage("list", **environment)
    assert done.returncode == 0, done.stderr
    assert "topk" in done.stdout


def test_a_full_disk_is_a_one_line_error_of_commands_that_only_print() -> None:
    done = shell("$SAGE list > /dev/full")
    assert done.returncode == 1
    assert done.stderr.startswith("sage list: ")
    assert "cannot write to standard output: No space left on device" in done.stderr
    assert done.stderr.count("\n") == 1


def test_head_ends_a_command_quietly() -> None:
    done = shell("$SAGE list | true")
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize("closed", ["<&-", "2>&-", "<&- 2>&-"])
def test_closed_descriptors_are_not_an_error(closed: str) -> None:
    done = shell(f"$SAGE list {closed}")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("closed", [">&-", "<&- >&-"])
def test_a_closed_stdout_is_a_one_line_error_of_commands_that_only_print(closed: str) -> None:
    done = shell(f"$SAGE list {closed}")
    assert done.returncode == 1
    assert done.stderr == "sage list: cannot write to standard output: it is closed\n"


def test_a_run_needs_no_stdout(tmp_path: Path) -> None:
    done = shell(f"$SAGE run digits-ff --steps 1 --runs {tmp_path} >&-")
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.glob("*/result.json"))


def test_the_owner_can_use_a_runs_files_under_any_umask(tmp_path: Path, sage_command: str) -> None:
    for times in ("finished: ", "already finished"):
        done = shell(f"umask 0777; {sage_command} run digits-ff --steps 1 --runs {tmp_path}/runs")
        assert done.returncode == 0, done.stderr
        assert times in done.stdout + done.stderr
    made = [tmp_path / "runs", *(tmp_path / "runs").rglob("*")]
    for path in made:
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path


def test_an_error_on_a_full_stderr_keeps_its_status() -> None:
    assert shell("$SAGE lsit 2> /dev/full").returncode == 2


def test_a_run_continues_if_its_output_cannot_be_printed(tmp_path: Path) -> None:
    """On a terminal that closes, with SIGHUP ignored, as under nohup."""
    host, terminal = pty.openpty()
    process = subprocess.Popen(
        [*PYTHON, "run", "digits-ff", "--reducer", "exact", "--steps", "12", "--runs", str(tmp_path)],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )
    try:
        os.close(terminal)
        time.sleep(0.2)
        os.close(host)
        assert process.wait(timeout=120) == 0
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    assert list(tmp_path.glob("*/result.json"))


def test_a_bug_is_reported_as_one_with_its_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def faulty() -> int:
        raise ZeroDivisionError("by\nnought")

    monkeypatch.setattr("sage.registry.workloads", faulty)
    assert main(["list"]) == 1
    message = capsys.readouterr().err
    assert "Traceback" in message
    last = message.splitlines()[-1]
    assert last.startswith("sage list: this is a bug in SAGE: ZeroDivisionError: by nought")
    assert "report it" in last


@pytest.mark.parametrize(
    ("error", "ends", "says"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (MemoryError(), 1, "out of memory"),
        (RecursionError("maximum"), 2, "nested too deeply"),
        (PermissionError(errno.EACCES, "Permission denied", "x.toml"), 2, "x.toml: Permission denied"),
        (OSError(errno.ENOSPC, "No space left on device", "/"), 1, "on the file system at / ("),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), 2, "invalid start byte"),
    ],
)
def test_errors_of_input_and_system_are_one_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    ends: int,
    says: str,
) -> None:
    def failing() -> int:
        raise error

    monkeypatch.setattr("sage.registry.workloads", failing)
    assert main(["list"]) == ends
    message = capsys.readouterr().err
    assert message.startswith("sage list: ")
    assert says in message
    assert message.count("\n") == 1


def test_temporary_errors_are_distinguished_from_permanent_ones() -> None:
    assert status_of(TimeoutError(errno.ETIMEDOUT, "timed out")) == 1
    assert status_of(ConnectionResetError(errno.ECONNRESET, "reset")) == 1
    assert status_of(NotADirectoryError(errno.ENOTDIR, "Not a directory", "runs")) == 2
    assert message(OSError()) == "OSError"


def test_an_error_about_a_folder_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    Display("digits", enabled=True).print("finished: runs/a\nb\x1b[2J")
    assert capsys.readouterr().err == "digits: finished: runs/a\\nb\\x1b[2J\n"
