"""Published tables as text, Markdown and JSON; a figure that is not verified has its status next to it."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from sage.output.units import MISSING, number
from sage.report.published.tables import PublishedTable, Row, Source

HEADING = ("method", "reducer", "metric", "value", "ratio", "status")
NUMBERS = ("value", "ratio", "theirs", "ours")
"""Columns that are aligned to the right."""


def listing(sources: Iterable[Source]) -> list[str]:
    """One line per source: its name, its numbers of verified and other figures, and its title."""
    lines = []
    for source in sources:
        verified = sum(row.status == "verified" for row in source.rows)
        lines.append([source.name, str(verified), str(len(source.rows) - verified), source.title])
    return columns(["source", "verified", "other", "title"], lines, right=("verified", "other"))


def text(source: Source) -> list[str]:
    """The lines of a source: its head, then each table that has figures or a setting."""
    lines = head(source)
    for table in source.tables:
        lines += ["", f"{table.title} ({table.name})"]
        lines += [f"  {part}" for part in (table.setting, table.note) if part]
        if table.rows:
            heading, cells = cells_of(table)
            lines += columns(heading, cells, right=NUMBERS)
        lines += [f"  {scale.method}: {scale.groups}{_flag(scale.status)}" for scale in table.scales]
    return lines


def markdown(source: Source) -> str:
    """A section of a page."""
    _, about, *notes = head(source)
    if source.url:
        about = about.replace(source.where, f"[{source.where}]({source.url})")
    lines = [f"## {source.title} {{ #{source.name} }}", "", about, *(["", *notes] if notes else [])]
    for table in source.tables:
        lines += ["", f"### {table.title} {{ #{source.name}-{table.name} }}"]
        lines += [
            line for part in (table.setting, table.note) if part for line in ("", f"{part.rstrip('.')}.")
        ]
        if table.rows:
            heading, cells = cells_of(table)
            rule = ["---:" if name in NUMBERS else "---" for name in heading]
            lines += ["", *(f"| {' | '.join(map(_cell, line))} |" for line in (heading, rule, *cells))]
        for scale in table.scales:
            lines += ["", f"Groups of {scale.method}: {scale.groups}{_flag(scale.status)}."]
    return "\n".join(lines)


def as_object(source: Source) -> dict[str, Any]:
    """The source as one object for JSON; each scale has its groups."""
    result = asdict(source)
    for table, given in zip(result["tables"], source.tables, strict=True):
        for scale, of in zip(table["scales"], given.scales, strict=True):
            scale["groups"] = asdict(of.groups)
    return result


def head(source: Source) -> list[str]:
    """Title, place and note of a source."""
    authors = f"{source.authors}, " if source.authors else ""
    year = f" ({source.year})" if source.year else ""
    commit = f" at {source.commit}" if source.commit else ""
    repository = f"; repository {source.repository}{commit}" if source.repository else ""
    lines = [source.title, f"{authors}{source.where}{year}{repository}."]
    return [*lines, *([source.note] if source.note else [])]


def cells_of(table: PublishedTable) -> tuple[list[str], list[list[str]]]:
    """Heading and lines of a table; without the column of the status if all figures are verified."""
    lines = [
        [row.method, row.spec or MISSING, row.metric, value(row), ratio(row, table), row.status]
        for row in table.rows
    ]
    if all(row.status == "verified" for row in table.rows):
        return list(HEADING[:-1]), [line[:-1] for line in lines]
    return list(HEADING), lines


def value(row: Row) -> str:
    """A figure as its source gives it.

    >>> row = Row(table="t", method="m", metric="speed", value=41.7, unit="×", bound="up to",
    ...           source="abstract", status="verified")
    >>> value(row)
    'up to 41.7 ×'
    """
    end = f" to {row.high:,.10g}" if row.high is not None else ""
    return f"{row.bound} {row.value:,.10g}{end} {row.unit}".strip()


def ratio(row: Row, table: PublishedTable) -> str:
    """A figure's ratio to its baseline; 1 for a baseline itself."""
    if row.ratio is None and any(row.key == (*other.key[:2], other.baseline) for other in table.rows):
        return times(1)
    return times(row.ratio)


def times(ratio: float | None) -> str:
    """Format a ratio, with the digits that ratios of accuracies need.

    >>> times(0.9989), times(None)
    ('0.9989×', '–')
    """
    return MISSING if ratio is None else f"{number(ratio)}×"


def columns(
    heading: Sequence[str], lines: Sequence[Sequence[str]], *, right: Sequence[str] = ()
) -> list[str]:
    """Align cells in columns, indented by two spaces."""
    widths = [max(map(len, column)) for column in zip(heading, *lines, strict=True)]
    return [
        "  "
        + "  ".join(
            cell.rjust(width) if name in right else cell.ljust(width)
            for cell, width, name in zip(line, widths, heading, strict=True)
        ).rstrip()
        for line in (heading, *lines)
    ]


def _flag(status: str) -> str:
    return "" if status == "verified" else f" ({status})"


def _cell(cell: str) -> str:
    return cell.replace("|", "\\|")
