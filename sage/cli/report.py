"""`sage report`: compare finished runs."""

from pathlib import Path

from .command import Argument, Command, Option
from .folders import ReadFolder, fetched


def report(*, paths: tuple[Path, ...], output: Path | None, json: bool) -> int:
    """Write the report."""
    from ..report.report import main

    found = [fetched(path) for path in paths] or [Path("runs")]
    if any(path.suffix == ".toml" for path in found):
        from ..jobs.sweep_report import runs_and_targets

        if len(found) > 1:
            raise ValueError("a sweep is reported alone; give one TOML file, or folders of runs")
        folders, runs, targets = runs_and_targets(found[0])
        return main(folders, output or runs, as_json=json, targets=targets)
    return main(found, output or found[0], as_json=json)


command = Command(
    "report",
    report,
    [
        Argument(
            "paths",
            ReadFolder,
            "Run folders, folders that contain some, their URLs, or one sweep's TOML file; default: runs.",
            required=False,
            num_values=-1,
        ),
        Option(
            "output",
            Path | None,
            None,
            "The output folder; default: the first path, a URL's copy, or the runs folder of the sweep.",
        ),
        Option("json", bool, False, "Print one JSON object instead of the tables."),
    ],
    help="Compare runs. It prints tables, and writes report.md, report.csv and report.html.",
)
