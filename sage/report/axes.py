"""Axes of a plot: distinct tick labels, and ranges that a single diverging curve does not enlarge."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy
from matplotlib.axes import Axes
from matplotlib.ticker import Formatter, LogLocator, NullFormatter

Text = Callable[[float, int], str]
"""Formats a value as text with the given number of significant digits."""

OUTLYING = 3.0
"""A curve is clipped where it leaves the typical range by more than this many times the range's height."""

LEAST_HEIGHT = 0.25
"""Smallest height assumed for the typical range, as a fraction of the largest absolute value in it."""

MAX_DIGITS = 10

LOG_STEPS = ((1.0, 2.0, 5.0), (1.0, 3.0), (1.0,))
"""Tick positions within a decade: the fewer decades, the more ticks in each."""


class DistinctLabels(Formatter):
    """Labels ticks with the fewest digits, at least three, that make all labels distinct."""

    def __init__(self, text: Text) -> None:
        self._text = text
        self._digits = 3

    def format_ticks(self, values: Sequence[float]) -> list[str]:
        """Return one label per tick."""
        low, high = (
            sorted(self.axis.get_view_interval()) if self.axis is not None else (min(values), max(values))
        )
        shown = {value for value in values if low <= value <= high}
        labels: dict[float, str] = {}
        for self._digits in range(3, MAX_DIGITS + 1):
            labels = {value: self._text(value, self._digits) for value in values}
            if len({labels[value] for value in shown}) == len(shown):
                break
        return list(labels.values()) if len(labels) == len(values) else [labels[value] for value in values]

    def __call__(self, x: float, pos: int | None = None) -> str:
        """Return the label of one value."""
        return self._text(x, self._digits)


def scale(axes: Axes, which: str, values: Iterable[float], text: Text, *, num_ticks: int = 8) -> None:
    """Format the axis in its unit; make it logarithmic if the values span more than one decade."""
    positive = [value for value in values if value > 0]
    axis = axes.xaxis if which == "x" else axes.yaxis
    if positive and max(positive) > 10 * min(positive):
        axes.set(**{f"{which}scale": "log"})
        decades = float(numpy.log10(max(positive) / min(positive)))
        steps = next((positions for positions in LOG_STEPS if len(positions) * decades < num_ticks), (1.0,))
        axis.set_major_locator(LogLocator(subs=steps, numticks=max(2, num_ticks)))
        axis.set_minor_formatter(NullFormatter())
    axis.set_major_formatter(DistinctLabels(text))


def from_zero(axes: Axes, text: Text) -> None:
    """Start the x axis at zero, leave a margin on the right, and format it in its unit."""
    axes.set_xlim(0, 1.08 * axes.get_xlim()[1])
    axes.locator_params(axis="x", nbins=5)
    axes.xaxis.set_major_formatter(DistinctLabels(text))


def limit(axes: Axes, curves: Mapping[str, Any], text: Text) -> str:
    """Set the y range from the typical curves; return a note on the curves it clips, "" if there are none.

    Args:
        axes: The axes that hold the curves.
        curves: The y values of each curve, by label.
        text: Formats a value.
    """
    ranges = {
        label: (float(finite.min()), float(finite.max()))
        for label, y in curves.items()
        if len(finite := numpy.asarray(y)[numpy.isfinite(y)])
    }
    if not ranges:
        return ""
    # The typical curves are the half nearest to the median curve, so that a diverging curve does not set the
    # scale. With two curves, it is the one with the smaller values.
    middles = sorted(((low + high) / 2 for low, high in ranges.values()), key=abs)
    middle = middles[(len(middles) - 1) // 2]
    nearest = sorted(ranges.values(), key=lambda ends: max(middle - ends[0], ends[1] - middle))
    typical = nearest[: (len(nearest) + 1) // 2]
    low, high = min(low for low, _ in typical), max(high for _, high in typical)
    room = OUTLYING * max(high - low, LEAST_HEIGHT * max(abs(low), abs(high)), 1e-12)
    bottom = max(min(low for low, _ in ranges.values()), low - room)
    top = min(max(high for _, high in ranges.values()), high + room)
    margin = 0.08 * (top - bottom) or 0.05 * abs(top) or 0.1
    axes.set_ylim(bottom - margin, top + margin)
    cut = {
        label: high if high > top + margin else low
        for label, (low, high) in ranges.items()
        if high > top + margin or low < bottom - margin
    }
    if not cut:
        return ""
    words = [f"{label} (reaches {text(value, 3)})" for label, value in list(cut.items())[:3]]
    more = f" and {len(cut) - 3} more" if len(cut) > 3 else ""
    return f"Cut off: {', '.join(words)}{more}."
