"""`sage target`: fix the targets of a sweep from its pilot runs."""

from pathlib import Path

from .command import Argument, Command, Option
from .folders import RunsFolder


def target(*, sweep: Path, runs: Path | None, late: bool) -> int:
    """Fix the targets."""
    from ..jobs.target import main

    return main(sweep, runs=runs, late=late)


command = Command(
    "target",
    target,
    [
        Argument("sweep", Path, "A sweep with a table [pilot], whose pilot runs are finished."),
        Option(
            "runs", RunsFolder | None, None, "The runs folder, or its URL; default: the sweep's, else runs."
        ),
        Option(
            "late",
            bool,
            False,
            "Fix the targets even if runs of the comparison are finished; the report then says so.",
        ),
    ],
    help="Fix the targets of a sweep from its pilot runs. They are written into its file, with the tuning.",
)
