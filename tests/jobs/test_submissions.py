"""Tests of the submission log: it is private, and an invalid line does not hide others."""

import json
import os
import re
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fuzz import examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sage.cli.main import main
from sage.jobs import submissions
from sage.jobs.submissions import Entry
from sage.storage import Unreadable


def entry(run: str, **other: Any) -> Entry:
    return Entry(**{"run": run, "job": "7_3", "cluster": "slurm", "logs": "nowhere", **other})


def line(name: str, **other: Any) -> bytes:
    return json.dumps({**entry(name).to_dict(), **other}).encode() + b"\n"


def write_log(runs: Path, *lines: bytes) -> Path:
    submissions.prepare(runs)
    (runs / ".jobs" / "submitted.jsonl").write_bytes(b"".join(lines))
    return runs


WRONG = {
    "a number": b"5\n",
    "a list": b"[]\n",
    "no entry": b"{}\n",
    "no JSON": b'{"cell": x}\n',
    "no text": b"\xff\xfe\n",
    "a number for a name": line("two", cell=5),
    "a path for a name": line("two", cell="../two"),
    "no cluster": line("two", cluster="cloud"),
    "all processes": line("two", job="-1", cluster="local"),
    "this group of processes": line("two", job="0", cluster="local"),
    "an option of scancel": line("two", job="--user=root"),
    "null": line("two", logs=None),
    "another type": line("two", started=[1]),
    "deep": b"[" * 100_000 + b"\n",
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_an_invalid_line_is_reported_and_the_others_are_read(tmp_path: Path, wrong: bytes) -> None:
    runs = write_log(tmp_path, line("one"), wrong, line("three"))
    entries, faults = submissions.read_with_faults(runs)
    assert list(entries) == ["one", "three"]
    (fault,) = faults
    assert "submitted.jsonl, line 2 is damaged" in fault
    assert "\n" not in fault


def test_an_entry_of_a_newer_version_is_read_or_distinguished_from_a_damaged_one(tmp_path: Path) -> None:
    runs = write_log(tmp_path, line("one", shade="blue"), line("two", format=2), line("three"))
    entries, faults = submissions.read_with_faults(runs)
    assert list(entries) == ["one", "three"]
    (fault,) = faults
    assert "line 2 was written by a newer version of SAGE" in fault


@settings(max_examples=examples(100), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.binary(max_size=80) | st.sampled_from([*WRONG.values()]), max_size=4))
def test_valid_entries_are_read_whatever_else_the_log_contains(tmp_path: Path, others: list[bytes]) -> None:
    noise = b"".join(other.replace(b'"one"', b"") + b"\n" for other in others)
    entries, faults = submissions.read_with_faults(
        write_log(tmp_path, noise, line("one"), noise, line("last"))
    )
    assert {"one", "last"} <= set(entries)
    assert all("\n" not in fault and len(fault) < 1000 for fault in faults)


@pytest.mark.parametrize("kept", [0, 1, 2])
def test_entries_that_the_log_has_lost_are_read_from_the_folders_of_their_jobs(
    tmp_path: Path, kept: int
) -> None:
    jobs = submissions.prepare(tmp_path)
    (jobs / "sweep-1").mkdir()
    (jobs / "sweep-2").mkdir()
    old = entry("one", job="1", logs=str(jobs / "sweep-1"), time="2026-01-01T00:00:00+00:00")
    new = entry("one", job="2", logs=str(jobs / "sweep-2"), time="2026-01-01T00:00:01+00:00")
    other = entry("two", job="3", logs=str(jobs / "sweep-1"))
    submissions.write(tmp_path, [old, other])
    submissions.write(tmp_path, [new])
    log = jobs / "submitted.jsonl"
    log.write_bytes(b"".join(log.read_bytes().splitlines(keepends=True)[:kept]))
    assert submissions.read(tmp_path) == {"one": new, "two": other}


@pytest.mark.parametrize("kind", ["folder", "fifo"])
def test_a_submission_log_that_is_not_a_file_is_an_error(tmp_path: Path, kind: str) -> None:
    path = write_log(tmp_path) / ".jobs" / "submitted.jsonl"
    path.unlink()
    path.mkdir() if kind == "folder" else os.mkfifo(path)
    with pytest.raises(Unreadable, match=r"submitted\.jsonl is a (folder|FIFO), not a regular file"):
        submissions.read(tmp_path)


@pytest.mark.parametrize("mask", [0o000, 0o002, 0o777])
def test_the_folder_for_jobs_is_private_under_any_umask(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        made = submissions.prepare(tmp_path) if mask != 0o777 else write_log(tmp_path) / ".jobs"
        submissions.write(tmp_path, [entry("one")])
    finally:
        os.umask(before)
    assert stat.S_IMODE(made.stat().st_mode) == 0o700
    assert stat.S_IMODE((made / "submitted.jsonl").stat().st_mode) == 0o600


def test_a_folder_that_was_accessible_by_others_is_made_private(tmp_path: Path) -> None:
    made = write_log(tmp_path, line("one")) / ".jobs"
    made.chmod(0o777)
    (made / "submitted.jsonl").chmod(0o666)
    submissions.prepare(tmp_path)
    assert stat.S_IMODE(made.stat().st_mode) == 0o700
    assert stat.S_IMODE((made / "submitted.jsonl").stat().st_mode) == 0o600


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to another user")
def test_the_folder_of_another_user_is_refused(tmp_path: Path) -> None:
    os.chown(submissions.prepare(tmp_path), 65534, 65534)
    with pytest.raises(
        Unreadable, match="belongs to user 65534, .*submit as that user, or choose another --runs"
    ):
        submissions.prepare(tmp_path)


def as_nobody(folder: Path, *argv: str) -> tuple[int, str, str]:
    """Run `sage` as a user without permissions; return its status and output."""
    files = [folder / "stdout", folder / "stderr"]
    child = os.fork()  # a new Python could not be started, because that user may not read its installation
    if child == 0:
        status = 99
        try:
            for number, path in enumerate(files, start=1):
                os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
            sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            status = main(list(argv))
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    out, err = (path.read_text() for path in files)
    return status, out, err


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that every user can enter, unlike those of pytest."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_commands_on_the_runs_of_another_user_end_with_one_line(public: Path) -> None:
    runs = write_log(public / "runs", line("w-topk-00000001"))
    (runs / "w-topk-00000002").mkdir(mode=0o700)
    (runs / "w-topk-00000003").mkdir()
    (runs / "w-topk-00000003" / "config.json").write_text("{}")
    (runs / "w-topk-00000003" / "metrics.jsonl").write_text("{}\n")
    (runs / "w-topk-00000003" / "metrics.jsonl").chmod(0o600)
    sweep = public / "sweep.toml"
    sweep.write_text('workload = "digits-ff"\nreducer = "exact"\ndevice = "cpu"\n')
    main(["submit", str(sweep), "--dry-run", "--runs", str(runs)])  # imports everything that is needed
    status, result, text = as_nobody(public, "status", str(runs))
    assert status == 0, text
    assert re.search(
        r"w-topk-00000002 +damaged .*w-topk-00000002/result.json cannot be read: Permission", result
    )
    assert re.search(
        r"w-topk-00000003 +missing .*w-topk-00000003/metrics.jsonl cannot be read: Permission", result
    )
    assert re.search(
        r"submitted.jsonl cannot be read: Permission .*; it is unknown which runs were submitted", text
    )
    for argv in (
        ["cancel", "w-topk-00000001", "--runs", str(runs)],
        ["logs", "w-topk-00000001", "--runs", str(runs)],
        ["submit", str(sweep), "--cluster", "local", "--runs", str(runs)],
    ):
        status, _, text = as_nobody(public, *argv)
        assert status == 2, (argv, text)
        assert text.startswith(f"sage {argv[0]}: {runs}")
        assert len(text.splitlines()) == 1, text


def test_an_incomplete_line_is_not_reported(tmp_path: Path) -> None:
    runs = write_log(tmp_path, line("one"), line("two")[:40])
    assert submissions.read_with_faults(runs) == ({"one": submissions.read(runs)["one"]}, [])
    submissions.write(runs, [entry("three")])
    entries, faults = submissions.read_with_faults(runs)
    assert list(entries) == ["one", "three"]
    assert faults == []
