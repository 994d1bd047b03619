"""The figures of a trace: Q–Q and tail plots of each measured step, and KS distances over the steps."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from sage.bench.distribution.families import FAMILIES
from sage.bench.distribution.measure import WHOLE, WITH, WITHOUT, Row
from sage.bench.distribution.words import FEEDBACK
from sage.report.svg import INK, MARKERS, MUTED, PALETTE, STYLE, LineStyle, as_svg

DASHES = ((), (5.0, 1.5), (1.2, 1.2), (6.0, 1.5, 1.2, 1.5), (3.0, 1.0))
STYLES = {
    family: LineStyle(colour, dashes, marker)
    for family, colour, dashes, marker in zip(FAMILIES, PALETTE, DASHES, MARKERS, strict=False)
}
"""The line of each family, with dashes, because the lines often lie on one another."""


@dataclass(frozen=True)
class Plot:
    """A drawn figure."""

    title: str
    caption: str
    svg: str


def plots(rows: Sequence[Row], prefix: str) -> list[Plot]:
    """Draw the figures of one trace; `prefix` makes their ids unique within a page."""
    whole = [row for row in rows if row.layer == WHOLE and row.fits]
    drawn: list[Plot] = []
    steps = list(dict.fromkeys(row.step for row in whole))
    for step in steps:
        at = [row for row in whole if row.step == step]
        for title, caption, draw in (
            (f"Q–Q, step {step}", QUANTILES, _quantiles),
            (f"Tail, step {step}", TAIL, _tail),
        ):
            drawn.append(_drawn(title, caption, draw, at, f"{prefix}-{len(drawn)}"))
    if len(steps) > 1:
        drawn.append(_drawn("KS distance by step", BY_STEP, _by_step, whole, f"{prefix}-{len(drawn)}"))
    return drawn


QUANTILES = (
    "Magnitudes |g| (vertical) against those that the fits give to the same share of elements. On the grey "
    "line a fit is exact; above it, the gradient is larger than the fit."
)
TAIL = "Share of the elements whose magnitude exceeds a threshold: the gradient's (points) and the fits'."
BY_STEP = "KS distance of each family; grey: the sampling error."


def _drawn(
    title: str,
    caption: str,
    draw: Callable[[Axes, Sequence[Row]], None],
    rows: Sequence[Row],
    prefix: str,
) -> Plot:
    """A figure with one panel without error feedback and one with it."""
    style: dict[Any, Any] = STYLE | {"svg.hashsalt": prefix}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(5.6, 3.1), layout="constrained")
        panels = figure.subplots(1, 2, sharex=True, sharey=True)
        for axes, memory in zip(panels, (WITHOUT, WITH), strict=True):
            axes.set_title(FEEDBACK[memory], fontsize="medium", color=MUTED)
            draw(axes, [row for row in rows if row.memory == memory])
        for axes in panels[1:]:
            axes.set_ylabel("")
        return Plot(title, caption, as_svg(figure, prefix, title))


def _quantiles(axes: Axes, rows: Sequence[Row]) -> None:
    axes.set(xlabel="fitted |g|", ylabel="|g|")
    for row in rows:
        assert row.curve is not None
        share_Q, magnitude_Q = row.curve
        low, high = magnitude_Q[0], magnitude_Q[-1]
        axes.plot([low, high], [low, high], color=MUTED, linewidth=0.8)
        for family, each in row.fits.items():
            fitted_Q = each.fitted.exceeded(share_Q)
            # A tail that decays too fast or too slowly must not set the scale.
            is_near_Q = (fitted_Q > low / 30) & (fitted_Q < 30 * high)
            axes.plot(fitted_Q[is_near_Q], magnitude_Q[is_near_Q], **_look(family))
    _logarithmic(axes)


def _tail(axes: Axes, rows: Sequence[Row]) -> None:
    axes.set(xlabel="threshold for |g|", ylabel="share above it")
    for row in rows:
        assert row.curve is not None
        share_Q, magnitude_Q = row.curve
        t_Q = numpy.geomspace(magnitude_Q[0], 2 * magnitude_Q[-1], 120)
        for family, each in row.fits.items():
            above_Q = each.fitted.above(t_Q)
            is_shown_Q = above_Q > 0.3 / row.used
            axes.plot(t_Q[is_shown_Q], above_Q[is_shown_Q], **_look(family))
        axes.plot(magnitude_Q, share_Q, "o", color=INK, markersize=2)
    _logarithmic(axes)


def _by_step(axes: Axes, rows: Sequence[Row]) -> None:
    axes.set(xlabel="step", ylabel="KS distance")
    steps = [row.step for row in rows]
    for family in FAMILIES:
        distances = [row.fits[family].ks if family in row.fits else numpy.nan for row in rows]
        axes.plot(steps, distances, **STYLES[family].line)
    axes.fill_between(steps, 0, [row.error for row in rows], color=MUTED, alpha=0.25, linewidth=0)
    axes.set_ylim(bottom=0)


def _look(family: str) -> dict[str, Any]:
    return {**STYLES[family].line, "linewidth": 1.3, "marker": ""}


def _logarithmic(axes: Axes) -> None:
    axes.set(xscale="log", yscale="log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(numticks=4))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_locator(NullLocator())
