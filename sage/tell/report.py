"""Compares runs: tables in the terminal, in Markdown and as CSV, and one HTML page with the curves.

A run that lost, stopped halfway or diverged has its row like any other.
"""

import csv
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sage.tell.runs import EXACT, TOLERANCE, Group, Values, grouped, read_runs

Columns = Mapping[str, Callable[[Values], str]]
"""The columns of a table after the first, which is the run's label."""

STATUS = "status"
"""The one column of words, which align to the left."""


def main(paths: Sequence[Path], output: Path) -> int:
    """Print the tables of all runs under the paths, and write report.md, report.csv and report.html."""
    # Here because it draws, and matplotlib is slow to import.
    from sage.tell.page import page

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


def size(count: float | None) -> str:
    """A number of bytes, in decimal units.

    >>> size(44_700_000), size(0), size(None)
    ('44.7 MB', '0 B', '—')
    """
    if count is None:
        return "—"
    power = min(int(math.log10(count) // 3), 4) if count >= 1 else 0
    return f"{_significant(count / 1000**power)} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"


def duration(seconds: float | None) -> str:
    """A time, in the unit that fits it.

    >>> duration(0.0123), duration(75), duration(7380)
    ('12.3 ms', '1 min 15 s', '2 h 3 min')
    """
    if seconds is None:
        return "—"
    if seconds < 60:
        return f"{_significant(seconds)} s" if seconds >= 1 else f"{_significant(seconds * 1000)} ms"
    minutes = round(seconds) // 60
    return (
        f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {round(seconds) % 60} s"
    )


def number(value: float | None) -> str:
    """A measured figure; one that was not finite says so."""
    if value is None:
        return "—"
    return f"{value:.4g}" if math.isfinite(value) else "not finite"


def percent(share: float | None) -> str:
    """A share of one, in per cent."""
    return "—" if share is None else f"{_significant(100 * share)} %"


def times(ratio: float | None) -> str:
    """A ratio to the exact run."""
    return "—" if ratio is None else f"{_significant(ratio)}×"


OUTCOME: Columns = {
    "{metric}": lambda values: number(values["final"]),
    "best": lambda values: number(values["best"]),
    "train loss": lambda values: number(values["train_loss"]),
    "steps/s": lambda values: number(values["steps_per_second"]),
    "step p50": lambda values: duration(values["step_seconds_p50"]),
    "step p95": lambda values: duration(values["step_seconds_p95"]),
    "speed-up": lambda values: times(values["speed_up"]),
    "time": lambda values: duration(values["seconds"]),
    STATUS: lambda values: str(values["status"]),
}

DENSITY: Columns = {
    "asked": lambda values: percent(values["density_asked"]),
    "had": lambda values: percent(values["density_had"]),
    f"within ±{100 * TOLERANCE:.0f} %": lambda values: percent(values["density_met"]),
}

NOTES = (
    f"Speed-up and compression compare steps/s and wire bytes with those of the {EXACT} run of the same "
    "workload on as many ranks: above 1× is better than exact, below 1× is worse.",
    "Payload is what a rank hands to its collectives; wire is what these send and receive on its link.",
    f"Within ±{100 * TOLERANCE:.0f} %: the share of steps whose density was that near to what was asked for.",
    "Step times are those of the slowest rank; those of an unfinished run are rank 0's own.",
)


def headline(group: Group) -> str:
    """Which metric the group is judged by."""
    direction = "higher" if group.better == "max" else "lower"
    return f"The metric is {spaced(group.metric)}: {direction} is better."


def spaced(name: str) -> str:
    """A name as prose has it."""
    return name.replace("_", " ")


def tables(group: Group) -> dict[str, list[list[str]]]:
    """The group's tables by title, as text; the first line of each is its heading."""
    traffic: Columns = {
        "payload": lambda values: size(values["payload_bytes_per_step"]),
        **{kind: _size_of(kind) for kind in group.kinds},
        "wire": lambda values: size(values["wire_bytes_per_step"]),
        "compression": lambda values: times(values["compression"]),
    }
    return {
        title: [
            ["reducer", *(heading.format(metric=spaced(group.metric)) for heading in columns)],
            *([row.label, *(text(row.values) for text in columns.values())] for row in group.rows),
        ]
        for title, columns in {"Outcome": OUTCOME, "Traffic of a step": traffic, "Density": DENSITY}.items()
    }


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


def _size_of(kind: str) -> Callable[[Values], str]:
    return lambda values: size(values.get(f"payload_{kind}_bytes_per_step"))


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _significant(value: float) -> str:
    """Three significant digits, without an exponent where it can be avoided.

    >>> _significant(44.719), _significant(999.6), _significant(12000), _significant(0.00123)
    ('44.7', '1000', '12000', '0.00123')
    """
    return f"{value:.0f}" if abs(value) >= 99.95 else f"{value:.3g}"
