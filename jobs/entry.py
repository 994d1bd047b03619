"""What each task of a job runs: `python -m sage.jobs.entry FOLDER` checks, loads and runs its cell."""

import sys
from collections.abc import Sequence
from pathlib import Path

from submitit.core.submission import process_job
from submitit.core.utils import JobPaths

from sage.jobs import private
from sage.outcome import HOPELESS, tell_the_job


def main(argv: Sequence[str]) -> int:
    """Run the job whose folder and number the arguments and the environment tell."""
    from submitit import JobEnvironment

    folder = Path(argv[0])
    try:
        private.check(JobPaths(folder, JobEnvironment().job_id).submitted_pickle)
    except (OSError, ValueError) as error:
        text = (
            f"{error.filename} is missing; {private.SUBMIT}"
            if isinstance(error, FileNotFoundError)
            else error
        )
        print(f"sage: {text}", file=sys.stderr, flush=True)
        tell_the_job(HOPELESS, str(text))
        return HOPELESS
    process_job(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
