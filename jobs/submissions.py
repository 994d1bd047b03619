"""The submission log, <runs>/.jobs/submitted.jsonl: the job submitted for each run, one JSON object per line.

Each submission also writes its own entries to `submitted.jsonl` in the folder of its jobs' files. Entries
that the log has lost are read from there, so that no active run is submitted again.

Only its owner can enter the folder `.jobs`, because jobs load pickles from it.
"""

import os
import re
import socket
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, Self, get_args

from sage import storage
from sage.records.record import now
from sage.storage import Damaged, Kind, Unreadable
from sage.storage.lock import Locked, locked

Cluster = Literal["slurm", "local", "debug"]

ENTRY = Kind(
    name="a job's entry",
    keys=dict.fromkeys(("cell", "job", "cluster", "logs", "time", "user", "host"), str),
    remedy="remove the line; the other lines stay valid",
)

JOB = {"slurm": re.compile(r"[1-9]\d{0,18}(_\d{1,9})?"), "local": re.compile(r"[1-9]\d{0,18}")}
JOB["debug"] = JOB["local"]
"""The form of job ids on each cluster. Only ids of this form are passed to scancel and kill."""

LOG = "submitted.jsonl"

WAIT = 60.0
"""Seconds that a submission waits for another one to the same runs folder."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One submission of a run."""

    run: str
    """The run's name, which is that of its folder; the file's key is `cell`."""
    job: str
    """SLURM's job id, "12_3" or "12"; elsewhere the process id."""
    cluster: Cluster
    logs: str
    """The folder with submitit's files of the job."""
    time: str = field(default_factory=now)
    user: str = field(default_factory=lambda: str(os.getuid()))
    host: str = field(default_factory=socket.gethostname)
    """The machine it was submitted on; without SLURM, also the one it runs on."""
    started: str = ""
    """The process's identity, independent of the clock (`local_process.identity`); "" under SLURM."""

    def to_dict(self) -> dict[str, Any]:
        """The entry as in the file."""
        content = asdict(self)
        return {"cell": content.pop("run"), **content}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """The entry in a line of the file; unknown keys are ignored."""
        known = {name: value for name, value in content.items() if name in KNOWN}
        return cls(run=content["cell"], **known)

    def log(self, rank: int) -> Path:
        """The file with this rank's stdout and stderr."""
        return Path(self.logs) / f"{self.job}_{rank}_log.out"


KNOWN = frozenset(field.name for field in fields(Entry)) - {"run"}


def folder(runs: Path) -> Path:
    """The folder of the submission log and of all jobs' files."""
    return runs / ".jobs"


def prepare(runs: Path) -> Path:
    """Create the folder `.jobs`, private under any umask, and check that the submission log is writable.

    Raises:
        Unreadable: the folder belongs to another user.
        OSError: the folder or the log cannot be created or written.
    """
    runs.mkdir(parents=True, exist_ok=True)
    jobs = folder(runs)
    jobs.mkdir(mode=0o700, exist_ok=True)
    check_owner(jobs)
    if jobs.stat().st_mode & 0o777 != 0o700:
        jobs.chmod(0o700)
    _make(_log(runs))
    return jobs


def check_owner(jobs: Path) -> None:
    """Refuse a folder for jobs that does not belong to this user."""
    found = jobs.stat()
    if not stat.S_ISDIR(found.st_mode):
        raise Damaged(jobs, "is not a folder", "remove it, or choose another --runs")
    if found.st_uid != os.geteuid():
        raise Unreadable(
            jobs,
            f"belongs to user {found.st_uid}, and you are user {os.geteuid()}",
            "submit as that user, or choose another --runs",
        )


def write(runs: Path, entries: Iterable[Entry]) -> None:
    """Append submissions to the submission log, then to the copies in the folders of their jobs' files."""
    folder(runs).mkdir(mode=0o700, parents=True, exist_ok=True)
    entries = tuple(entries)
    storage.append_json_lines(_log(runs), (entry.to_dict() for entry in entries), private=True)
    for logs in {entry.logs for entry in entries}:
        own = folder(runs) / Path(logs).name
        if own.is_dir():
            copies = (entry.to_dict() for entry in entries if entry.logs == logs)
            storage.append_json_lines(own / LOG, copies, private=True)


def read(runs: Path) -> dict[str, Entry]:
    """The newest submission of each run; damaged lines are skipped.

    Raises:
        Unreadable: the submission log cannot be read at all.
    """
    return read_with_faults(runs)[0]


def read_with_faults(runs: Path) -> tuple[dict[str, Entry], list[str]]:
    """The newest submission of each run, and one message per damaged line of the submission log.

    Raises:
        Unreadable: the submission log cannot be read at all.
    """
    entries, faults = _read(_log(runs))
    for path in sorted(folder(runs).glob(f"*/{LOG}")):
        try:
            copies, _ = _read(path)
        except Unreadable:  # a copy: what it adds is missing only if the log is damaged too
            continue
        for run, copy in copies.items():
            if run not in entries or entries[run].time < copy.time:
                entries[run] = copy
    return entries, faults


def _read(path: Path) -> tuple[dict[str, Entry], list[str]]:
    """The newest entry of each run in one file, and one message per damaged line."""
    entries: dict[str, Entry] = {}
    faults: list[str] = []
    try:
        content = storage.read_bytes(path)
    except FileNotFoundError:
        return entries, faults
    lines = content.splitlines(keepends=True)
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            entry = _entry(path, line, f"line {number}")
        except Unreadable as fault:
            # A line cut short by a crash is expected and not reported.
            if line.endswith(b"\n") and not _is_torn(line):
                faults.append(str(fault))
            continue
        entries[entry.run] = entry
    return entries, faults


@contextmanager
def lock_sweep(runs: Path, sweep: str) -> Iterator[None]:
    """Lock the sweep for other submissions, for as long as this one submits it or runs it locally.

    Raises:
        ValueError: another process holds the lock.
    """
    folder(runs).mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        with locked(_make(folder(runs) / f"{sweep}.lock")):
            yield
    except Locked as owner:
        raise ValueError(
            f"the sweep {sweep} is being submitted to {runs} by another process ({owner}): wait until it ends"
        ) from owner


@contextmanager
def lock_runs(runs: Path) -> Iterator[None]:
    """Lock a runs folder for all other submissions, so that sweeps with common runs start each of them once.

    Raises:
        ValueError: another process still holds the lock after a minute.
    """
    try:
        with locked(_make(lock(runs)), wait=WAIT):
            yield
    except Locked as owner:
        raise ValueError(
            f"another process ({owner}) has been submitting runs to {runs} for over {WAIT:g} s: "
            "wait until it ends, and submit again"
        ) from owner


def lock(runs: Path) -> Path:
    """The file that is locked while runs are submitted."""
    return folder(runs) / "lock"


def _make(path: Path) -> Path:
    """Create the file if needed, check that it is writable, and make it private."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    try:
        if os.fstat(descriptor).st_mode & 0o777 != 0o600:
            os.fchmod(descriptor, 0o600)
    finally:
        os.close(descriptor)
    return path


def _log(runs: Path) -> Path:
    return folder(runs) / LOG


def _entry(path: Path, line: bytes, where: str) -> Entry:
    found = storage.checked(path, storage.parse_json(path, line, ENTRY, where), ENTRY, where)
    entry = Entry.from_dict(found)
    if (key := _invalid_key(entry)) is not None:
        raise Damaged(path, f", {where} is damaged: {key!r} is {found[key]!r:.80}", ENTRY.remedy)
    return entry


def _invalid_key(entry: Entry) -> str | None:
    """The file's key of the first invalid value."""
    valid: Mapping[str, Any] = {
        "cluster": entry.cluster in get_args(Cluster),
        "job": entry.cluster in JOB and JOB[entry.cluster].fullmatch(entry.job),
        "cell": entry.run not in ("", ".", "..") and not {"/", "\0"} & set(entry.run),
        "logs": "\0" not in entry.logs,
        "user": re.fullmatch(r"\d{1,10}", entry.user),
        "started": isinstance(entry.started, str),
    }
    return next((key for key, is_valid in valid.items() if not is_valid), None)


def _is_torn(line: bytes) -> bool:
    """Whether a line is an incomplete entry, which the next writer has terminated with a newline."""
    return line.startswith(b'{"cell": ') and not line.rstrip().endswith(b"}")
