"""Compares runs: tables in the terminal, in Markdown and as CSV, and one HTML page with the curves.

A run that lost, stopped halfway or diverged has its row like any other.
"""

import csv
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sage.tell.page import page
from sage.tell.runs import Group, grouped, read_runs
from sage.tell.tables import NOTES, STATUS, headline, tables


def main(paths: Sequence[Path], output: Path) -> int:
    """Print the tables of all runs under the paths, and write report.md, report.csv and report.html."""
    runs, unreadable = read_runs(paths)
    groups = grouped(runs)
    output.mkdir(parents=True, exist_ok=True)
    (output / "report.md").write_text(markdown(groups, unreadable), encoding="utf-8")
    (output / "report.html").write_text(page(groups, unreadable), encoding="utf-8")
    write_csv(groups, output / "report.csv")
    # A file has room for the widest line; on a terminal rich breaks lines to fit.
    show(groups, unreadable, Console(width=None if sys.stdout.isatty() else 200))
    print(f"Report: {output / 'report.html'} (and report.md, report.csv)")
    print(f"TensorBoard: tensorboard --logdir {' '.join(map(str, paths))}")
    return 0


def markdown(groups: Sequence[Group], unreadable: Mapping[Path, str]) -> str:
    """The tables as Markdown."""
    lines = ["# Report"]
    for group in groups:
        lines += ["", f"## {group.title}", "", headline(group)]
        for title, (heading, *rows) in tables(group).items():
            rule = ["---", *["---:"] * (len(heading) - 1)]
            lines += ["", f"### {title}", "", *map(_line, [heading, rule, *rows])]
    if unreadable:
        lines += ["", "## Left out", "", *(f"- `{folder}`: {why}" for folder, why in unreadable.items())]
    return "\n".join([*lines, "", "## Notes", "", *(f"- {note}" for note in NOTES), ""])


def write_csv(groups: Sequence[Group], path: Path) -> None:
    """One line a run, with bare numbers: bytes, seconds, and shares of one."""
    rows = [row.values for group in groups for row in group.rows]
    # Not every run has every kind of payload.
    names = dict.fromkeys(name for values in rows for name in values)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(names), restval="")
        writer.writeheader()
        writer.writerows(rows)


def show(groups: Sequence[Group], unreadable: Mapping[Path, str], console: Console) -> None:
    """Print the tables."""
    for group in groups:
        console.print(Text(f"\n{group.title}", style="bold"), Text(headline(group)), sep="\n")
        for title, (heading, *rows) in tables(group).items():
            table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
            for name in heading:
                table.add_column(
                    name, justify="left" if name in ("reducer", STATUS) else "right", overflow="fold"
                )
            for row in rows:
                # As Text: a label may hold brackets, which are markup to rich.
                table.add_row(*map(Text, row))
            console.print(table)
    for folder, why in unreadable.items():
        console.print(Text(f"Left out: {folder}: {why}", style="red"), soft_wrap=True)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
