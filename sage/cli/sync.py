"""`sage sync`: upload runs to a URL."""

from pathlib import Path

from .command import Argument, Command, Option
from .folders import RunsFolder


def sync(*, local: Path | None, url: str | None, replace: bool) -> int:
    """Upload the runs."""
    from ..records.sync import main

    return main(local, url, replace=replace)


command = Command(
    "sync",
    sync,
    [
        Argument(
            "local",
            RunsFolder,
            "A folder of runs; default: all folders of runs that were given as URLs.",
            required=False,
        ),
        Argument(
            "url", str, "Where to upload, such as s3://bucket/runs; default: the folder's.", required=False
        ),
        Option(
            "replace",
            bool,
            False,
            "Replace all files of earlier runs there that could not be read when the runs here started.",
        ),
    ],
    help="Upload runs to the URL of their folder, as far as they are not there. Files are compared by length "
    "and checksum, so doing it again uploads nothing. Files that a run has replaced are removed there; no "
    "others are.",
)
