"""What a submission is about to submit, written down before sbatch is called.

A `sage submit` that is killed between sbatch and the job book leaves a job that no command knows, and that
waits for a cell which was never put in its place. The note lets the next submission cancel the job.
"""

import os
from collections.abc import Callable, Iterable
from pathlib import Path

from sage import storage
from sage.jobs import scheduler
from sage.jobs.submissions import Entry
from sage.storage import Kind

INTENT = Kind(
    name="a note of what is submitted",
    keys={"name": str, "comment": str, "user": str},
    cure="cancel the jobs that squeue shows and sage status does not, and remove the file",
)


def write(folder: Path, name: str, comment: str) -> Path:
    """Write down which jobs are about to be submitted; to be removed once they are in the book."""
    path = folder / f"intent-{comment.rpartition('/')[2]}.json"
    told = {"name": name, "comment": comment, "user": str(os.getuid())}
    storage.write_json(path, told, INTENT, private=True)
    return path


def settle(jobs: Path, entries: Iterable[Entry], say: Callable[[str], None]) -> None:
    """Cancel the jobs of submissions that were ended before they had booked them.

    To be called where no other submission to the same folder of runs is under way.

    Args:
        jobs: the folder of runs' folder for jobs.
        entries: the job book.

    Raises:
        Unanswered: where SLURM does not answer.
        Unreadable: where a note cannot be read.
    """
    paths = sorted(jobs.glob("*/intent-*.json"))
    if not paths:
        return
    booked = {entry.job.partition("_")[0] for entry in entries if entry.cluster == "slurm"}
    for path in paths:
        intent = storage.read_json(path, INTENT)
        found = scheduler.find(intent["name"], intent["comment"], intent["user"])
        if lost := found - booked:
            scheduler.cancel(lost)
            say(
                f"cancelled job {', '.join(sorted(lost))}, which a `sage submit` that was ended left unbooked"
            )
        path.unlink()
