"""`sage status`: show the states of a sweep's runs."""

from pathlib import Path

from .command import Argument, Command, Option
from .folders import ReadFolder, RunsFolder, fetched


def status(*, what: Path | None, runs: Path | None, watch: bool, json: bool) -> int:
    """Show the states."""
    from ..jobs.status import main

    return main(what and fetched(what), runs=runs, watching=watch, as_json=json)


command = Command(
    "status",
    status,
    [
        Argument(
            "what",
            ReadFolder,
            "A sweep's TOML file, a runs folder, or its URL; default: runs.",
            required=False,
        ),
        Option(
            "runs", RunsFolder | None, None, "The runs folder, or its URL; default: the sweep's, else runs."
        ),
        Option("watch", bool, False, "Update the display until no run is active."),
        Option("json", bool, False, "Print one JSON object."),
    ],
    help="Show the states of a sweep's runs, or of all runs in a folder.",
)
