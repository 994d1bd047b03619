"""The job book, <runs>/.jobs/submitted.jsonl: which job was submitted for which cell, one a line, in JSON.

`.jobs` belongs to one user: jobs load what is in it as pickles. Nobody else can enter it.
"""

import os
import re
import socket
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

from sage import storage
from sage.records.record import now
from sage.storage import Damaged, Kind, Unreadable
from sage.storage.lock import Locked, locked

Cluster = Literal["slurm", "local", "debug"]

BOOK = Kind(
    name="a job's entry",
    keys=dict.fromkeys(("cell", "job", "cluster", "logs", "time", "user", "host"), str),
    cure="remove the line; the others count",
)

JOB = {"slurm": re.compile(r"[1-9]\d{0,18}(_\d{1,9})?"), "local": re.compile(r"[1-9]\d{0,18}")}
JOB["debug"] = JOB["local"]
"""What a job is called on each cluster. Such names are handed to scancel and kill: no other one is."""

WAIT = 60.0
"""Seconds that a submission waits for another one to the same folder of runs."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One submission of a cell."""

    cell: str
    """The name of its run folder."""
    job: str
    """SLURM's name of the job, "12_3" or "12"; elsewhere the process id."""
    cluster: Cluster
    logs: str
    """The folder where submitit keeps what belongs to the job."""
    time: str = field(default_factory=now)
    user: str = field(default_factory=lambda: str(os.getuid()))
    host: str = field(default_factory=socket.gethostname)
    """Where it was submitted; not under SLURM also where it runs."""
    started: str = ""
    """Which process it is, whatever the clock says (`here.identity`); "" under SLURM."""

    def log(self, rank: int) -> Path:
        """What this rank has said, to stdout and to stderr."""
        return Path(self.logs) / f"{self.job}_{rank}_log.out"


KNOWN = frozenset(each.name for each in fields(Entry))


def folder(runs: Path) -> Path:
    """Where the book is, and all else that belongs to jobs."""
    return runs / ".jobs"


def prepare(runs: Path) -> Path:
    """Make the folder for jobs, for its owner alone whatever the umask, and see that the book can be written.

    Raises:
        Unreadable: where it belongs to another user.
        OSError: where the file system refuses.
    """
    runs.mkdir(parents=True, exist_ok=True)
    ours = folder(runs)
    ours.mkdir(mode=0o700, exist_ok=True)
    check_owner(ours)
    if ours.stat().st_mode & 0o777 != 0o700:
        ours.chmod(0o700)
    _make(_book(runs))
    return ours


def check_owner(ours: Path) -> None:
    """Refuse a folder for jobs that is not this user's."""
    found = ours.stat()
    if not stat.S_ISDIR(found.st_mode):
        raise Damaged(ours, "is no folder", "remove it, or choose another --runs")
    if found.st_uid != os.geteuid():
        raise Unreadable(
            ours,
            f"belongs to user {found.st_uid}, and you are user {os.geteuid()}",
            "submit as that user, or choose another --runs",
        )


def write(runs: Path, entries: Iterable[Entry]) -> None:
    """Add submissions to the book."""
    folder(runs).mkdir(mode=0o700, parents=True, exist_ok=True)
    storage.append_json_lines(_book(runs), (asdict(entry) for entry in entries), private=True)


def read(runs: Path) -> dict[str, Entry]:
    """The newest submission of each cell; lines that cannot be used are left out.

    Raises:
        Unreadable: where the whole book cannot be read.
    """
    return look(runs)[0]


def look(runs: Path) -> tuple[dict[str, Entry], list[str]]:
    """The newest submission of each cell, and what is wrong with other lines of the book.

    Raises:
        Unreadable: where the whole book cannot be read.
    """
    path = _book(runs)
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
            # A line that a crash has torn is no news: it was being written.
            if line.endswith(b"\n") and not _is_torn(line):
                faults.append(str(fault))
            continue
        entries[entry.cell] = entry
    return entries, faults


@contextmanager
def claimed(runs: Path, suite: str) -> Iterator[None]:
    """Keep other submissions of the suite off, for as long as this one runs its cells.

    Raises:
        ValueError: where another process submits it.
    """
    folder(runs).mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        with locked(_make(folder(runs) / f"{suite}.lock")):
            yield
    except Locked as owner:
        raise ValueError(
            f"the suite {suite} is being submitted to {runs} by another process ({owner}): let it end"
        ) from owner


@contextmanager
def held(runs: Path) -> Iterator[None]:
    """Keep all other submissions to a folder of runs off: suites that share cells run each of them once.

    Raises:
        ValueError: where another process still submits after a minute.
    """
    try:
        with locked(_make(lock(runs)), wait=WAIT):
            yield
    except Locked as owner:
        raise ValueError(
            f"cells are being submitted to {runs} by another process ({owner}) for over {WAIT:g} s: "
            "let it end, and submit again"
        ) from owner


def lock(runs: Path) -> Path:
    """The file that is locked while cells are submitted."""
    return folder(runs) / "lock"


def _make(path: Path) -> Path:
    """A file that can be written, by its owner alone; made where there is none."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    try:
        if os.fstat(descriptor).st_mode & 0o777 != 0o600:
            os.fchmod(descriptor, 0o600)
    finally:
        os.close(descriptor)
    return path


def _book(runs: Path) -> Path:
    return folder(runs) / "submitted.jsonl"


def _entry(path: Path, line: bytes, where: str) -> Entry:
    found = storage.checked(path, storage.parse_json(path, line, BOOK, where), BOOK, where)
    entry = Entry(**{name: value for name, value in found.items() if name in KNOWN})
    if (wrong := _wrong(entry)) is not None:
        raise Damaged(path, f", {where} is damaged: {wrong!r} is {getattr(entry, wrong)!r:.80}", BOOK.cure)
    return entry


def _wrong(entry: Entry) -> str | None:
    """The first field that cannot be true."""
    true: Mapping[str, Any] = {
        "cluster": entry.cluster in get_args(Cluster),
        "job": entry.cluster in JOB and JOB[entry.cluster].fullmatch(entry.job),
        "cell": entry.cell not in ("", ".", "..") and not {"/", "\0"} & set(entry.cell),
        "logs": "\0" not in entry.logs,
        "user": re.fullmatch(r"\d{1,10}", entry.user),
        "started": isinstance(entry.started, str),
    }
    return next((name for name, is_so in true.items() if not is_so), None)


def _is_torn(line: bytes) -> bool:
    """Whether a line is the beginning of an entry, which the next writer has ended with a newline."""
    return line.startswith(b'{"cell": ') and not line.rstrip().endswith(b"}")
