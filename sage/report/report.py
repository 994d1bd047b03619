"""Compares runs: tables in the terminal, in Markdown and as CSV, and an HTML page with figures.

Runs that are slower than the baseline, unfinished or diverged are listed like all others.
"""

import csv
import io
import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from sage import storage
from sage.output.units import printable
from sage.report.groups import Group, grouped
from sage.report.page import page
from sage.report.runs import read_runs
from sage.report.tables import NOTES, WORDS, headline, tables
from sage.report.time_to_target.targets import Targets
from sage.report.time_to_target.values import time_to_target
from sage.report.time_to_target.verdicts import first_line

MAX_PATHS = 4
"""At most this many paths are named in the command for TensorBoard."""

MAX_LINES = 60
"""At most this many lines of a table are printed; report.md has all."""


def main(
    paths: Sequence[Path], output: Path, *, as_json: bool = False, targets: Targets | None = None
) -> int:
    """Print the tables of all runs under the paths, and write report.md, report.csv and report.html.

    With `as_json` one JSON object is printed instead of the tables: the values of each run, by group.

    Args:
        targets: the values of the metrics to reach, for the times to the target.

    Each file is replaced atomically: if writing fails, the old file is unchanged.

    Raises:
        ValueError: if there are no runs.
        OSError: if the report cannot be written.
    """
    runs, unreadable = read_runs(paths)
    groups = grouped(runs, targets)
    contents = {
        "report.md": markdown(groups, unreadable),
        "report.csv": as_csv(groups),
        "report.html": page(groups, unreadable),
    }
    try:
        output.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            storage.write_text(output / name, content)
    except OSError as error:
        reason = f"{error.strerror}; give another folder with --output"
        raise OSError(error.errno, reason, error.filename) from error
    if as_json:
        print(json.dumps(as_object(groups, unreadable, output), indent=2, default=str))
        return 0
    # A file has room for the widest line; on a terminal rich breaks lines to fit.
    show(groups, unreadable, Console(width=None if sys.stdout.isatty() else 200))
    print(f"Report: {printable(output / 'report.html')} (and report.md, report.csv)")
    # The runs of a sweep are many folders; TensorBoard takes the folder that contains them.
    places = (
        paths if len(paths) <= MAX_PATHS else [Path(os.path.commonpath([path.absolute() for path in paths]))]
    )
    print(f"TensorBoard: tensorboard --logdir {' '.join(map(printable, places))}")
    return 0


def markdown(groups: Sequence[Group], unreadable: Mapping[Path, str]) -> str:
    """Return the tables as Markdown."""
    lines = ["# Report", *(["", verdict] if (verdict := first_line(groups)) else [])]
    for group in groups:
        lines += ["", f"## {group.title}", "", headline(group)]
        for table in tables(group):
            rule = ["---" if name in WORDS else "---:" for name in table.heading]
            lines += ["", f"### {table.title}", *(["", table.note] if table.note else []), ""]
            lines += map(_line, [table.heading, rule, *table.lines])
    if unreadable:
        left_out = [f"- `{printable(folder)}`: {why}" for folder, why in unreadable.items()]
        lines += ["", "## Runs left out", "", *left_out]
    text = "\n".join([*lines, "", "## Notes", "", *(f"- {note}" for note in NOTES), ""])
    return text.encode("utf-8", "backslashreplace").decode()


def as_csv(groups: Sequence[Group]) -> str:
    """Return one CSV line per run, in plain numbers: bytes, seconds, and fractions of 1."""
    rows = [row.values for group in groups for row in group.rows]
    # The kinds of payload differ between runs.
    names = dict.fromkeys(name for values in rows for name in values)
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, list(names), restval="")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue().encode("utf-8", "backslashreplace").decode()


def as_object(groups: Sequence[Group], unreadable: Mapping[Path, str], output: Path) -> dict[str, Any]:
    """The values of report.csv by group, with what was left out; a figure that is not finite is None."""
    return {
        "verdict": first_line(groups) or None,
        "groups": [
            {
                "title": group.title,
                "headline": headline(group),
                "time_to_target": time_to_target(group),
                "runs": [_finite(r.values) for r in group.rows],
            }
            for group in groups
        ],
        "left_out": {str(folder): why for folder, why in unreadable.items()},
        "files": [str(output / name) for name in ("report.md", "report.csv", "report.html")],
    }


def _finite(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in values.items()
    }


def show(groups: Sequence[Group], unreadable: Mapping[Path, str], console: Console) -> None:
    """Print the tables."""
    if verdict := first_line(groups):
        console.print(Text(verdict, style="bold"))
    for group in groups:
        console.print(Text(f"\n{group.title}", style="bold"), Text(headline(group)), sep="\n")
        for table in tables(group):
            console.print(Text(f"\n{table.title}", style="italic"))
            if table.note:
                console.print(Text(table.note, style="dim"), soft_wrap=True)
            grid = Grid(box=SIMPLE_HEAD, pad_edge=False)
            for name in table.heading:
                grid.add_column(name, justify="left" if name in WORDS else "right", overflow="fold")
            for line in table.lines[:MAX_LINES]:
                # As Text, because rich reads brackets in a label as markup.
                grid.add_row(*map(Text, line))
            console.print(grid)
            if len(table.lines) > MAX_LINES:
                console.print(Text(f"… and {len(table.lines) - MAX_LINES} more lines: see report.md"))
    for folder, why in unreadable.items():
        console.print(Text(f"Left out: {printable(folder)}: {why}", style="red"), soft_wrap=True)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
