"""`sage logs`: what the job of a cell has printed."""

import os
import stat
import subprocess
import sys
from pathlib import Path

from sage.jobs.selection import booked, meant
from sage.storage import Unreadable


def logs(cell: str, *, runs: Path, rank: int = 0, follow: bool = False) -> int:
    """Print what a cell's newest job has said.

    Args:
        cell: its name, its hash, or how one of them begins.
        rank: whose words; 0's are those of the batch script too.
        follow: go on printing, until Ctrl-C.

    Raises:
        ValueError: where no such cell was submitted, or where it has no log.
    """
    entries = booked(runs, "logs")
    entry = entries[meant(cell, entries, runs)]
    if entry.cluster == "debug":
        raise ValueError(
            f"{entry.cell} ran on a terminal (--cluster debug), where it said what it had to say"
        )
    path = entry.log(rank)
    if follow:
        return subprocess.call(["tail", "-n", "+1", "-F", str(path)])
    if not path.exists():
        ranks = sorted(each.name.split("_")[-2] for each in path.parent.glob(f"{entry.job}_*_log.out"))
        there = f"there are ranks {', '.join(ranks)}" if ranks else "its job has not begun"
        raise ValueError(f"rank {rank} of {entry.cell} has no log in {path.parent}; {there}")
    _print(path)
    return 0


def _print(path: Path) -> None:
    """Print a log, which may be larger than the memory."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, encoding="utf-8", errors="replace", newline="") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise Unreadable(path, "is no regular file", "remove it")
        while part := file.read(2**20):
            sys.stdout.write(part)
