"""`sage cancel`: cancel the jobs of runs."""

from pathlib import Path

from .command import Argument, Command, Option
from .folders import RunsFolder
from .values import Suggestions


def cancel(*, what: tuple[str, ...], runs: Path | None) -> int:
    """Cancel the jobs."""
    from ..jobs.status import cancel as main

    return main(what, runs=runs)


command = Command(
    "cancel",
    cancel,
    [
        Argument(
            "what",
            str,
            "A sweep's TOML file, or a run: its folder's name or its hash, or a prefix of either.",
            num_values=-1,
            suggestions=Suggestions("runs", or_files=True),
        ),
        Option(
            "runs", RunsFolder | None, None, "The runs folder, or its URL; default: the sweep's, else runs."
        ),
    ],
    help="Cancel the active jobs of runs, or of all runs of a sweep.",
)
