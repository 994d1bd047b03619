"""The table of a report with published figures next to those of its runs, as ratios to own baselines."""

from functools import cache

from sage.report.groups import Group
from sage.report.published.files import find, sources
from sage.report.published.own_runs import interval, lines_of
from sage.report.published.tables import Source
from sage.report.published.text import times
from sage.report.table import Table

TITLE = "Published figures"

NOTE = (
    "Published and ours are each a ratio to its own baseline, because seconds of different hardware do not "
    "compare. Only figures that were verified in their source are listed; `sage published` prints all."
)


def published_table(group: Group) -> Table:
    """Return a line for each verified published ratio that runs of the group have too."""
    lines = [
        (source, line)
        for source in _verified()
        for line in lines_of(source, [group])
        if line.ours is not None and line.label != line.baseline
    ]
    return Table(
        title=TITLE,
        note=NOTE,
        heading=["reducer", "table", "metric", "published", "ours", "95 % interval", "n", "baseline"],
        lines=[
            [
                line.label,
                f"{source.name} {line.row.table}",
                line.row.metric,
                times(line.row.ratio),
                times(None if line.ours is None else line.ours.mean),
                interval(line.ours),
                str(line.num),
                line.baseline,
            ]
            for source, line in lines
        ],
        hints=[f"{source.title}: {line.row.source}" for source, line in lines],
        series=[line.label for _, line in lines],
    )


@cache
def _verified() -> tuple[Source, ...]:
    return tuple(find(name).verified() for name in sources())
