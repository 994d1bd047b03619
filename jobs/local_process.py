"""Jobs on this machine as processes: whether one is alive, and how to stop it. Without submitit."""

import os
import signal
import socket
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from sage.jobs.submissions import Entry
from sage.storage.lock import started

BOOT = Path("/proc/sys/kernel/random/boot_id")

STOP = "stop"
"""Suffix of a file in submitit's folder; if the file exists, the local job is not started again."""


def stop(entry: Entry, *, and_others: bool = False) -> None:
    """Make a job on this machine write a checkpoint and end; `and_others`: its submission starts no more."""
    mark_cancelled(entry)
    if and_others:
        with suppress(OSError):
            (Path(entry.logs) / STOP).touch(mode=0o600)
    with suppress(ProcessLookupError):
        os.kill(int(entry.job), signal.SIGTERM)


def mark_cancelled(entry: Entry) -> None:
    """Record that a job was cancelled: a SLURM job that had not started leaves no trace in the queue."""
    with suppress(OSError):
        _mark(entry).touch(mode=0o600)


def was_cancelled(entry: Entry) -> bool:
    """Whether `sage cancel` has cancelled the job."""
    try:
        return _mark(entry).exists()
    except OSError:
        return False


def identity(process: int) -> str:
    """Identifies a process independently of the clock: boot id, and clock ticks from boot to its start."""
    try:
        ticks = started(process)
        return ticks and f"{BOOT.read_text().strip()}/{ticks}"
    except OSError:
        return ""


def alive(entry: Entry) -> bool:
    """Whether a job on this machine is still running. Its process id may belong to another process by now."""
    if entry.host != socket.gethostname() or not entry.job.isdecimal():
        return False
    found = identity(int(entry.job))
    if entry.started or not found:
        return bool(found) and found == entry.started
    # An entry by a version that did not record the process's identity: compare by the clock.
    try:
        boot = next(line for line in Path("/proc/stat").read_text().splitlines() if line.startswith("btime "))
        began = int(boot.split()[1]) + int(found.partition("/")[2]) / os.sysconf("SC_CLK_TCK")
        return began <= datetime.fromisoformat(entry.time).timestamp() + 10
    except (OSError, ValueError, StopIteration):
        return False


def _mark(entry: Entry) -> Path:
    return Path(entry.logs) / f"{entry.job}_{STOP}"
