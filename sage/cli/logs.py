"""`sage logs`: print the log of a run's job."""

from pathlib import Path

from .command import Argument, Command, Option
from .values import Suggestions


def logs(*, run: str, runs: Path, rank: int, follow: bool) -> int:
    """Print the log."""
    from ..jobs.logs import logs as main

    return main(run, runs=runs, rank=rank, follow=follow)


command = Command(
    "logs",
    logs,
    [
        Argument(
            "run",
            str,
            "Its folder's name, its hash, or the beginning of one of them.",
            suggestions=Suggestions("runs"),
        ),
        Option("runs", Path, Path("runs"), "Where the run folders are."),
        Option("rank", int, 0, "Which rank's log; that of rank 0 is the batch script's too."),
        Option("follow", bool, False, "Continue to print what is added, until Ctrl-C."),
    ],
    help="Print the log of a run's newest job.",
)
