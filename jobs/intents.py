"""Intent files: written before sbatch is called, removed once the job is in the submission log.

A `sage submit` that is killed in between leaves a job that is not in the log. The job waits for a pickle
that was never renamed to its job id. The intent file lets the next submission cancel the job.
"""

import os
from collections.abc import Callable, Iterable
from pathlib import Path

from sage import storage
from sage.jobs import scheduler
from sage.jobs.submissions import Entry
from sage.storage import Kind

INTENT = Kind(
    name="an intent file",
    keys={"name": str, "comment": str, "user": str},
    remedy="cancel the jobs that squeue shows and sage status does not, and remove the file",
)


def write(folder: Path, name: str, comment: str) -> Path:
    """Write an intent file for jobs about to be submitted; remove it once they are in the submission log."""
    path = folder / f"intent-{comment.rpartition('/')[2]}.json"
    content = {"name": name, "comment": comment, "user": str(os.getuid())}
    storage.write_json(path, content, INTENT, private=True)
    return path


def settle(jobs: Path, entries: Iterable[Entry], echo: Callable[[str], None]) -> None:
    """Cancel the jobs of submissions that were killed before their jobs were in the submission log.

    Call it only while no other submission to the same runs folder is in progress.

    Args:
        jobs: the runs folder's `.jobs` folder.
        entries: the submission log.

    Raises:
        Unanswered: SLURM does not answer.
        Unreadable: an intent file cannot be read.
    """
    paths = sorted(jobs.glob("*/intent-*.json"))
    if not paths:
        return
    recorded = {entry.job.partition("_")[0] for entry in entries if entry.cluster == "slurm"}
    for path in paths:
        intent = storage.read_json(path, INTENT)
        found = scheduler.find(intent["name"], intent["comment"], intent["user"])
        if lost := found - recorded:
            scheduler.cancel(lost)
            echo(f"cancelled job {', '.join(sorted(lost))}: a killed `sage submit` had not recorded it")
        path.unlink()
