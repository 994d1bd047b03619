"""What a report compares its runs by: the columns of its tables, and the notes below them."""

from collections.abc import Callable, Mapping

from sage.tell.runs import EXACT, TOLERANCE, Group, Values
from sage.tell.units import duration, number, percent, size, spaced, times

Columns = Mapping[str, Callable[[Values], str]]
"""The columns of a table after the first, which is the run's label."""

STATUS = "status"
"""The one column of words, which align to the left."""


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


def _size_of(kind: str) -> Callable[[Values], str]:
    return lambda values: size(values.get(f"payload_{kind}_bytes_per_step"))
