"""Scales of a plot: tick labels that differ, and ranges that one diverging curve does not stretch."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy
from matplotlib.axes import Axes
from matplotlib.ticker import Formatter, LogLocator, NullFormatter

Text = Callable[[float, int], str]
"""A figure as text, with so many significant digits."""

OUTLYING = 3.0
"""A curve is cut off where it leaves the range of the typical curves by more than so many of its heights."""

LEAST_HEIGHT = 0.25
"""The least height of that range in this sense, as a share of its values."""

MAX_DIGITS = 10

LOG_STEPS = ((1.0, 2.0, 5.0), (1.0, 3.0), (1.0,))
"""Ticks within a power of ten, the more the fewer powers there are."""


class DistinctLabels(Formatter):
    """Labels ticks with as few digits as keep them apart, three at least."""

    def __init__(self, text: Text) -> None:
        self._text = text
        self._digits = 3

    def format_ticks(self, values: Sequence[float]) -> list[str]:
        """A label for each tick."""
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
        """A label for one value."""
        return self._text(x, self._digits)


def scale(axes: Axes, which: str, values: Iterable[float], text: Text, *, num_ticks: int = 8) -> None:
    """Label the axis in its unit, and make it logarithmic where the values span more than a power of ten."""
    positive = [value for value in values if value > 0]
    axis = axes.xaxis if which == "x" else axes.yaxis
    if positive and max(positive) > 10 * min(positive):
        axes.set(**{f"{which}scale": "log"})
        decades = float(numpy.log10(max(positive) / min(positive)))
        steps = next((each for each in LOG_STEPS if len(each) * decades < num_ticks), (1.0,))
        axis.set_major_locator(LogLocator(subs=steps, numticks=max(2, num_ticks)))
        axis.set_minor_formatter(NullFormatter())
    axis.set_major_formatter(DistinctLabels(text))


def from_zero(axes: Axes, text: Text) -> None:
    """Let the x axis begin at zero, with room on the right, and label it in its unit."""
    axes.set_xlim(0, 1.08 * axes.get_xlim()[1])
    axes.locator_params(axis="x", nbins=5)
    axes.xaxis.set_major_formatter(DistinctLabels(text))


def limit(axes: Axes, curves: Mapping[str, Any], text: Text) -> str:
    """Set the y range by the typical curves, and say which curves it cuts off; "" where it cuts none.

    Args:
        axes: What the curves are drawn on.
        curves: The y values of each curve, by its label.
        text: How a value reads.
    """
    ranges = {
        label: (float(finite.min()), float(finite.max()))
        for label, y in curves.items()
        if len(finite := numpy.asarray(y)[numpy.isfinite(y)])
    }
    if not ranges:
        return ""
    # The typical curves are the half nearest to the median curve: a diverging one must not set the scale. Of
    # two, the one with the smaller values.
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
