"""Entry point of each task of a job: `python -m sage.jobs.entry FOLDER` checks, loads and runs its pickle."""

import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from submitit import JobEnvironment
from submitit.core.submission import process_job
from submitit.core.utils import JobPaths

from sage import storage
from sage.exit_status import FATAL, notify_job


def main(argv: Sequence[str]) -> int:
    """Run this job's pickle from submitit's folder.

    Loading a pickle executes code, so a pickle that another user could have written is not loaded.
    """
    folder = Path(argv[0])
    environment = JobEnvironment()
    paths = JobPaths(folder, environment.job_id, environment.global_rank)
    _close(paths.stdout)
    try:
        storage.check_private(paths.submitted_pickle)
    except FileNotFoundError:
        return _refuse(f"{paths.submitted_pickle} is missing; submit the sweep again")
    except storage.Unreadable as fault:
        return _refuse(f"{fault}; it was not loaded: submit the sweep again")
    try:
        process_job(folder)
    finally:
        _close(paths.result_pickle)
    return 0


def _refuse(text: str) -> int:
    print(f"sage: {text}", file=sys.stderr, flush=True)
    notify_job(FATAL, text)
    return FATAL


def _close(path: Path) -> None:
    """Make a file readable and writable by its owner only."""
    with suppress(OSError):
        path.chmod(0o600)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
