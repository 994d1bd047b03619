"""`sage logs`: print the log of a run's job."""

from pathlib import Path

from .command import Argument, Command, Option
from .folders import RunsFolder
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
            "The run's folder name or hash, or a prefix of either.",
            suggestions=Suggestions("runs"),
        ),
        Option("runs", RunsFolder, Path("runs"), "The runs folder, or its URL."),
        Option("rank", int, 0, "The rank; rank 0's log includes the batch script's output."),
        Option("follow", bool, False, "Continue to print new output until Ctrl-C."),
    ],
    help="Print the log of a run's newest job.",
)
