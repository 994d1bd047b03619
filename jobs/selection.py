"""Which runs and cells the commands mean by what a person types."""

import sys
from collections.abc import Mapping
from pathlib import Path

from sage.jobs import submissions
from sage.jobs.submissions import Entry
from sage.validate import known


def booked(runs: Path, verb: str) -> dict[str, Entry]:
    """The job book; what is wrong with lines of it is printed.

    Raises:
        Unreadable: where the whole book cannot be read.
    """
    entries, faults = submissions.look(runs)
    for fault in faults:
        print(f"sage {verb}: {fault}", file=sys.stderr)
    return entries


def meant(given: str, entries: Mapping[str, Entry], runs: Path) -> str:
    """The one submitted cell that is meant."""
    if given in entries:
        return given
    meant = [cell for cell in entries if cell.startswith(given) or cell.rpartition("-")[2].startswith(given)]
    if len(meant) > 1:
        raise ValueError(
            f"{given!r} may be any of {len(meant)} cells: {', '.join(meant[:10])}; say more of it"
        )
    if meant:
        return meant[0]
    if not entries:
        raise ValueError(f"no cell was submitted to {runs}; another folder of runs is given by --runs")
    try:
        return known("submitted cell", given, entries)
    except ValueError as error:
        raise ValueError(f"{error} (in {runs}; another folder of runs is given by --runs)") from None
