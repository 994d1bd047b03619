"""Line plots of a report. A docstring here is the figure's caption in the page."""
# S = recorded steps of a run, E = evaluations of a run

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from sage.output.units import duration, number, percent, size, spaced
from sage.report.axes import limit, scale
from sage.report.bands import BAND, band
from sage.report.groups import Group
from sage.report.settings import Row, Setting
from sage.report.svg import MUTED, LineStyle

POINTS = 400
"""Longer curves are thinned to about this many points; peaks are kept."""

SEEDS = 5
"""At most this many runs of a setting are drawn."""

MARKS = 8
"""Number of markers on a long curve."""

Curve = NDArray[numpy.float64]


@dataclass
class Drawing:
    """The contents of a drawn figure."""

    settings: list[Setting] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """Notes on clipped curves and on settings or runs that are not drawn."""


@dataclass(frozen=True)
class Canvas:
    """A figure to draw on and the group to draw."""

    figure: Figure
    group: Group
    settings: Sequence[Setting]
    """The settings to draw; at most as many as there are distinct line styles."""
    line_styles: dict[str, LineStyle]

    def rows(self) -> Iterator[tuple[Setting, Row]]:
        """Yield the runs to draw, each with its setting."""
        for setting in self.settings:
            yield from ((setting, row) for row in setting.rows[:SEEDS])

    def all_rows(self) -> Iterator[tuple[Setting, Row]]:
        """Yield all runs of the settings to draw, each with its setting."""
        yield from ((setting, row) for setting in self.settings for row in setting.rows)


def metric_by_epoch(canvas: Canvas) -> Drawing | None:
    """Metric on the whole test set at each evaluation."""
    axes = canvas.figure.subplots()
    axes.set(xlabel="epochs", ylabel=spaced(canvas.group.metric))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 2.5, 5, 10]))
    return _lines(axes, canvas, ((s, row, _of(row.run.epochs, "epoch")) for s, row in canvas.all_rows()))


def metric_by_traffic(canvas: Canvas) -> Drawing | None:
    """Metric at each evaluation against the bytes sent and received so far on rank 0's link."""
    axes = canvas.figure.subplots()
    axes.set(xlabel="bytes on the wire", ylabel=spaced(canvas.group.metric))
    curves = []
    for setting, row in canvas.all_rows():
        run = row.run
        if len(run.steps) and run.epochs:
            done_S = run.steps["step"] + 1
            # If not every step is recorded, a recorded step represents those since the previous one.
            total_S = numpy.cumsum(run.steps.wire * numpy.diff(done_S, prepend=0))
            total_E = numpy.interp(_of(run.epochs, "step"), done_S, total_S)
            if total_E.any():
                curves.append((setting, row, total_E))
    drawing = _lines(axes, canvas, curves)
    scale(axes, "x", [float(value) for _, _, x_E in curves for value in x_E if math.isfinite(value)], size)
    return drawing


def loss_by_step(canvas: Canvas) -> Drawing | None:
    """Training loss, smoothed over 1/50 of the run; faint lines show single steps."""
    axes = canvas.figure.subplots()
    axes.set(xlabel="step", ylabel="training loss")
    drawing, curves = Drawing(), {}
    for setting, row in canvas.rows():
        step_S, loss_S = row.run.steps["step"], row.run.steps["loss"]
        if numpy.isfinite(loss_S).sum() > 1:
            style = canvas.line_styles[setting.label]
            smooth_S = _smooth(loss_S, max(1, len(loss_S) // 50))
            if len(canvas.settings) <= 12:  # with more settings, the noise would hide the curves
                axes.plot(*_thin(step_S, loss_S), alpha=0.25, linewidth=0.7, color=style.colour)
            _line(axes, *_thin(step_S, smooth_S), style)
            curves[row.label] = smooth_S
            _shown(drawing, setting)
    drawing.notes += [note] if (note := limit(axes, curves, number)) else []
    return drawing if curves else None


def density_by_step(canvas: Canvas) -> Drawing | None:
    """Achieved density: share of the gradient sent in a step. Dotted: target density."""
    axes = canvas.figure.subplots()
    axes.set(xlabel="step", ylabel="density")
    drawing, values = Drawing(), []
    for setting, row in canvas.rows():
        steps = row.run.steps
        if row.values["density_asked"] is not None and numpy.isfinite(steps["density_had"]).sum() > 1:
            target_S, achieved_S = steps["density_asked"], steps["density_had"]
            _line(axes, *_thin(steps["step"], achieved_S), canvas.line_styles[setting.label], linewidth=1.1)
            axes.plot(*_thin(steps["step"], target_S), color=MUTED, linewidth=1, linestyle=(0, (1.2, 1.2)))
            for values_S in (achieved_S, target_S):
                values += values_S[numpy.isfinite(values_S)].tolist()
            _shown(drawing, setting)
    scale(axes, "y", values, percent)
    return drawing if values else None


def pareto(canvas: Canvas) -> Drawing | None:
    """Final metric against total bytes on the wire and against training time: means over seeds, error bars of
    one standard deviation. The line joins the Pareto-optimal settings; the others are faint."""
    group = canvas.group
    points = []
    for setting in canvas.settings:
        metric = setting.spread("final")
        wire, steps, seconds = (setting.mean(name) for name in ("wire_bytes_per_step", "steps", "seconds"))
        if metric is None or not metric.num or not wire or not steps or not seconds:
            continue
        points.append((setting, metric, wire * steps, seconds))
    if len(points) < 2:
        return None
    by_bytes, by_time = canvas.figure.subplots(1, 2, sharey=True)
    by_bytes.set(xlabel="bytes on the wire", ylabel=spaced(group.metric))
    by_time.set(xlabel="training time")
    for axes, costs in ((by_bytes, [p[2] for p in points]), (by_time, [p[3] for p in points])):
        values = [metric.mean for _, metric, _, _ in points]
        best = front(costs, values, group.better)
        axes.plot([costs[i] for i in best], [values[i] for i in best], color=MUTED, linewidth=1, zorder=1)
        for i, (setting, metric, _, _) in enumerate(points):
            style, is_best = canvas.line_styles[setting.label], i in best
            axes.errorbar(
                costs[i],
                metric.mean,
                yerr=metric.sd,
                fmt=style.marker,
                color=style.colour,
                markersize=7 if is_best else 5,
                alpha=1 if is_best else 0.45,
                elinewidth=1,
                zorder=2,
            )
        axes.margins(x=0.12)
        axes.locator_params(axis="x", nbins=4)
        scale(axes, "x", costs, size if axes is by_bytes else duration, num_ticks=4)
    note = limit(by_bytes, {setting.label: [metric.mean] for setting, metric, _, _ in points}, number)
    return Drawing([setting for setting, *_ in points], [note] if note else [])


def front(costs: Sequence[float], values: Sequence[float], better: str) -> list[int]:
    """Return the indices of the Pareto-optimal points, by increasing cost.

    >>> front([1, 2, 3, 4], [0.5, 0.4, 0.7, 0.6], "max")
    [0, 2]
    """
    sign = 1 if better == "max" else -1
    indices: list[int] = []
    for i in sorted(range(len(costs)), key=lambda i: (costs[i], -sign * values[i])):
        if not indices or sign * values[i] > sign * values[indices[-1]]:
            indices.append(i)
    return indices


# Helpers that several figures use.


def _lines(axes: Axes, canvas: Canvas, curves: Any) -> Drawing | None:
    """Draw the metric at each evaluation over the given x values; None if there is nothing to compare.

    From `BAND` runs with the same evaluations, a setting is a curve, their median, with a band of the range.
    """
    drawing, longest, has_band = Drawing(), 0, False
    shown: dict[str, list[float]] = defaultdict(list)
    for setting, members in _by_setting(canvas, curves).items():
        style = canvas.line_styles[setting.label]
        if len(members) >= BAND and len({len(x_E) for _, x_E, _ in members}) == 1:
            middle_E, low_E, high_E = band(numpy.array([y_E for *_, y_E in members]))
            x_E = numpy.mean([x_E for _, x_E, _ in members], axis=0)
            _line(axes, x_E, middle_E, style)
            axes.fill_between(x_E, low_E, high_E, color=style.colour, alpha=0.18, linewidth=0)
            shown[setting.label] += [*low_E.tolist(), *high_E.tolist()]
            drawing.settings.append(setting)
            has_band = True
        else:
            for row, x_E, y_E in members[:SEEDS]:
                _line(axes, x_E, y_E, style)
                shown[row.label] += y_E.tolist()
                _shown(drawing, setting)
        longest = max(longest, *(len(x_E) for _, x_E, _ in members))
    # A single point gives no scale, and the table shows its value.
    if longest < 2 and len(drawing.settings) < 2:
        return None
    if has_band:
        drawing.notes.append(
            f"From {BAND} runs of a setting: their median, and a band from least to largest."
        )
    drawing.notes += [note] if (note := limit(axes, shown, number)) else []
    return drawing


def _by_setting(canvas: Canvas, curves: Any) -> dict[Setting, list[tuple[Row, Curve, Curve]]]:
    """The runs that have a finite value, by setting: each with its x values and the metric (E)."""
    by_setting: dict[Setting, list[tuple[Row, Curve, Curve]]] = defaultdict(list)
    for setting, row, x_E in curves:
        y_E = _of([epoch["metrics"] for epoch in row.run.epochs], canvas.group.metric)
        if len(x_E) and numpy.isfinite(y_E).any():
            by_setting[setting].append((row, x_E, y_E))
    return by_setting


def _line(axes: Axes, x: Curve, y: Curve, style: LineStyle, **more: Any) -> None:
    axes.plot(x, y, markevery=max(1, len(x) // MARKS), **(style.line | more))


def _shown(drawing: Drawing, setting: Setting) -> None:
    if setting not in drawing.settings:
        drawing.settings.append(setting)
        if len(setting.rows) > SEEDS:
            note = f"At most {SEEDS} runs per setting are drawn."
            drawing.notes += [note] if note not in drawing.notes else []


def _of(records: Sequence[dict[str, Any]], name: str) -> Curve:
    """Return a field of all records; NaN, which makes a gap in the curve, where it is null or absent."""
    return numpy.array([record.get(name) for record in records], dtype=numpy.float64)


def _smooth(y_S: Curve, window: int) -> Curve:
    """Moving average of the finite values among the last `window`."""
    finite_S = numpy.isfinite(y_S)
    sums_S, counts_S = (
        numpy.convolve(values, numpy.ones(window))[: len(y_S)]
        for values in (numpy.where(finite_S, y_S, 0.0), finite_S.astype(float))
    )
    return numpy.divide(sums_S, counts_S, out=numpy.full(len(y_S), numpy.nan), where=counts_S > 0)


def _thin(x_S: Curve, y_S: Curve) -> tuple[Curve, Curve]:
    """Keep the minimum and the maximum of each of `POINTS` / 2 intervals, and both ends."""
    if len(x_S) <= POINTS:
        return x_S, y_S
    indices = {0, len(x_S) - 1}
    for stretch in numpy.array_split(numpy.arange(len(x_S)), POINTS // 2):
        if numpy.isfinite(y_S[stretch]).any():
            indices |= {
                int(stretch[numpy.nanargmin(y_S[stretch])]),
                int(stretch[numpy.nanargmax(y_S[stretch])]),
            }
        else:
            indices.add(int(stretch[0]))
    order = sorted(indices)
    return x_S[order], y_S[order]
