"""`sage report`: compare finished runs."""

from pathlib import Path

from .command import Argument, Command, Option


def report(*, paths: tuple[Path, ...], output: Path | None, json: bool) -> int:
    """Write the report."""
    from ..report.report import main

    found = list(paths) or [Path("runs")]
    return main(found, output or found[0], as_json=json)


command = Command(
    "report",
    report,
    [
        Argument(
            "paths",
            Path,
            "Run folders, or folders that contain some; default: runs.",
            required=False,
            num_values=-1,
        ),
        Option("output", Path | None, None, "The output folder; default: the first path."),
        Option("json", bool, False, "Print one JSON object instead of the tables."),
    ],
    help="Compare runs. It prints tables, and writes report.md, report.csv and report.html.",
)
