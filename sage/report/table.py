"""A table of a report."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of text. Every line has as many cells as the heading."""

    title: str
    note: str
    heading: list[str]
    lines: list[list[str]]
    hints: list[str]
    """A tooltip for each line: the folders of its runs."""
    series: list[str]
    """The series whose line style each line shows; "" for none."""
