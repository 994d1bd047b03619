"""`sage status`: show the states of a sweep's runs."""

from pathlib import Path

from .command import Argument, Command, Option


def status(*, what: Path | None, runs: Path | None, watch: bool, json: bool) -> int:
    """Show the states."""
    from ..jobs.status import main

    return main(what, runs=runs, watching=watch, as_json=json)


command = Command(
    "status",
    status,
    [
        Argument("what", Path, "A sweep's TOML file, or a runs folder; default: runs.", required=False),
        Option("runs", Path | None, None, "The runs folder; default: the sweep's `runs`, else runs."),
        Option("watch", bool, False, "Update the display until no run is active."),
        Option("json", bool, False, "Print one JSON object."),
    ],
    help="Show the states of a sweep's runs, or of all runs in a folder.",
)
