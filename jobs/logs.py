"""`sage logs`: the output of a run's job."""

import os
import stat
import subprocess
import sys
from pathlib import Path

from sage.jobs.selection import select_run, submitted_runs
from sage.storage import Unreadable


def logs(run: str, *, runs: Path, rank: int = 0, follow: bool = False) -> int:
    """Print the output of a run's newest job.

    Args:
        run: the run's name or hash, or the beginning of either.
        runs: the runs folder.
        rank: the rank; rank 0's output includes the batch script's.
        follow: continue to print new output, until Ctrl-C.

    Raises:
        ValueError: no such run was submitted, or it has no log.
    """
    entries = submitted_runs(runs, "logs")
    entry = entries[select_run(run, entries, runs)]
    if entry.cluster == "debug":
        raise ValueError(
            f"{entry.run} ran with --cluster debug, which prints to the terminal and keeps no log"
        )
    path = entry.log(rank)
    if follow:
        return subprocess.call(["tail", "-n", "+1", "-F", str(path)])
    if not path.exists():
        ranks = sorted(log.name.split("_")[-2] for log in path.parent.glob(f"{entry.job}_*_log.out"))
        reason = f"ranks with a log: {', '.join(ranks)}" if ranks else "its job has not started"
        raise ValueError(f"rank {rank} of {entry.run} has no log in {path.parent}; {reason}")
    _print(path)
    return 0


def _print(path: Path) -> None:
    """Print a log in parts, because it may be larger than the memory."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, encoding="utf-8", errors="replace", newline="") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise Unreadable(path, "is not a regular file", "remove it")
        while part := file.read(2**20):
            sys.stdout.write(part)
