"""The job book, <runs>/.jobs/submitted.jsonl: which job was submitted for which cell, one a line, in JSON."""

import fcntl
import json
import os
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from sage.tell.record import now

Cluster = Literal["slurm", "local", "debug"]


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

    def log(self, rank: int) -> Path:
        """What this rank has said, to stdout and to stderr."""
        return Path(self.logs) / f"{self.job}_{rank}_log.out"


def folder(runs: Path) -> Path:
    """Where the book is, and all else that belongs to jobs."""
    return runs / ".jobs"


def write(runs: Path, entries: Iterable[Entry]) -> None:
    """Add submissions to the book."""
    lines = "".join(json.dumps(asdict(entry)) + "\n" for entry in entries)
    path = folder(runs) / "submitted.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        if file.tell() and os.pread(file.fileno(), 1, file.tell() - 1) != b"\n":
            file.write(b"\n")  # the last line was torn by a crash; it must not tear this one
        file.write(lines.encode())
        file.flush()
        os.fsync(file.fileno())


def read(runs: Path) -> dict[str, Entry]:
    """The newest submission of each cell."""
    try:
        lines = (folder(runs) / "submitted.jsonl").read_bytes().splitlines()
    except FileNotFoundError:
        return {}
    entries = {}
    for line in lines:
        try:
            entry = Entry(**json.loads(line))
        except ValueError:  # torn
            continue
        entries[entry.cell] = entry
    return entries


@contextmanager
def claimed(runs: Path, suite: str) -> Iterator[None]:
    """Keep other submissions of the suite off, which would submit the same cells."""
    folder(runs).mkdir(parents=True, exist_ok=True)
    with (folder(runs) / f"{suite}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"the suite {suite} is being submitted to {runs} by another process: let it end"
            ) from None
        yield
