"""Which run a command's argument refers to."""

import sys
from collections.abc import Mapping
from pathlib import Path

from sage.jobs import submissions
from sage.jobs.submissions import Entry
from sage.validate import known


def submitted_runs(runs: Path, command: str) -> dict[str, Entry]:
    """The newest submission of each run in a runs folder; faults of the submission log are printed.

    Raises:
        Unreadable: the submission log cannot be read at all.
    """
    entries, faults = submissions.read_with_faults(runs)
    for fault in faults:
        print(f"sage {command}: {fault}", file=sys.stderr)
    return entries


def select_run(given: str, entries: Mapping[str, Entry], runs: Path) -> str:
    """The one submitted run whose name or hash is, or begins with, the given text.

    Raises:
        ValueError: no submitted run matches, or several do.
    """
    if given in entries:
        return given
    matches = [
        name for name in entries if name.startswith(given) or name.rpartition("-")[2].startswith(given)
    ]
    if len(matches) > 1:
        raise ValueError(
            f"{given!r} matches {len(matches)} runs: {', '.join(matches[:10])}; give more of the name"
        )
    if matches:
        return matches[0]
    if not entries:
        raise ValueError(f"no run was submitted to {runs}; give another runs folder by --runs")
    try:
        return known("submitted run", given, entries)
    except ValueError as error:
        raise ValueError(f"{error} (in {runs}; give another runs folder by --runs)") from None
