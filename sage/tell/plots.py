"""Draws a report's curves and bars."""
# S = recorded steps of a run, E = its evaluations

import inspect
import math
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import matplotlib
import numpy
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter
from numpy.typing import NDArray

from sage.tell.runs import EXACT, Group, Row
from sage.tell.svg import DASHES, MUTED, PALETTE, STYLE, Look, as_svg
from sage.tell.units import duration, percent, size, spaced

POINTS = 400
"""Longer curves are thinned to about so many points, their peaks kept."""

Curve = NDArray[numpy.float64]


@dataclass(frozen=True)
class Plot:
    """A drawn figure and the words beside it."""

    title: str
    caption: str
    svg: str


Looks = dict[str, Look]


def looks_of(group: Group) -> Looks:
    """A look for each series: exact is grey, the others have the palette's colours, solid and then dashed."""
    others = [series for series in dict.fromkeys(row.series for row in group.rows) if series != EXACT]
    styles = [Look(colour, dashes) for dashes, colour in product(DASHES, PALETTE)]
    return {EXACT: Look(MUTED)} | {series: styles[i % len(styles)] for i, series in enumerate(others)}


def plots(group: Group, prefix: str) -> list[Plot]:
    """Every figure for which the group's records have data; the prefix keeps ids unique within a page."""
    drawn = []
    looks = looks_of(group)
    for i, (title, draw) in enumerate(FIGURES.items()):
        title = title.format(metric=spaced(group.metric).capitalize())
        style: dict[Any, Any] = STYLE | {"svg.hashsalt": prefix}
        with matplotlib.rc_context(style):
            figure = Figure(figsize=(5.6, 3.1), layout="constrained")
            if draw(figure, group, looks):
                drawn.append(Plot(title, inspect.getdoc(draw) or "", as_svg(figure, f"{prefix}-{i}", title)))
    return drawn


# The figures. Each draws itself and says whether there was anything to draw; its docstring is its caption.


def _metric_by_epoch(figure: Figure, group: Group, looks: Looks) -> bool:
    """On the whole test set, after each evaluation."""
    axes = figure.subplots()
    axes.set(xlabel="epochs", ylabel=spaced(group.metric))
    for row in group.rows:
        epochs_E, metric_E = _curve(row.run.epochs, "epoch"), _evaluations(row, group)
        axes.plot(epochs_E, metric_E, marker="o", **looks[row.series].line)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return any(row.run.epochs for row in group.rows)


def _metric_by_traffic(figure: Figure, group: Group, looks: Looks) -> bool:
    """What a method reaches on the same traffic: bytes rank 0 had sent and received by each evaluation."""
    axes = figure.subplots()
    axes.set(xlabel="bytes on the wire", ylabel=spaced(group.metric))
    reached: list[float] = []
    for row in group.rows:
        if row.run.steps and row.run.epochs:
            done_S = _curve(row.run.steps, "step") + 1
            wire_S = _curve(row.run.steps, "wire_sent") + _curve(row.run.steps, "wire_received")
            # Where not every step is recorded, one stands for those since the last.
            total_S = numpy.cumsum(wire_S * numpy.diff(done_S, prepend=0))
            total_E = numpy.interp(_curve(row.run.epochs, "step"), done_S, total_S)
            axes.plot(total_E, _evaluations(row, group), marker="o", **looks[row.series].line)
            reached += total_E.tolist()
    _scale(axes, "x", reached, size)
    return any(reached)


def _loss_by_step(figure: Figure, group: Group, looks: Looks) -> bool:
    """Smoothed over a fiftieth of the run; the single steps are faint behind."""
    axes = figure.subplots()
    axes.set(xlabel="step", ylabel="training loss")
    shown: list[float] = []
    for row in group.rows:
        step_S, loss_S = _curve(row.run.steps, "step"), _curve(row.run.steps, "loss")
        if numpy.isfinite(loss_S).sum() > 1:
            smooth_S = _smooth(loss_S, max(1, len(loss_S) // 50))
            axes.plot(*_thin(step_S, loss_S), alpha=0.25, linewidth=0.7, color=looks[row.series].colour)
            axes.plot(*_thin(step_S, smooth_S), **looks[row.series].line)
            shown += [float(numpy.nanmin(smooth_S)), float(numpy.nanmax(smooth_S))]
    if shown:
        # A single step's peak must not flatten the curves.
        margin = 0.08 * (max(shown) - min(shown)) or 0.1
        axes.set_ylim(min(shown) - margin, max(shown) + margin)
    return bool(shown)


def _density_by_step(figure: Figure, group: Group, looks: Looks) -> bool:
    """The share of the gradient that a step sent; dotted, what had been asked for."""
    axes = figure.subplots()
    axes.set(xlabel="step", ylabel="density")
    seen: list[float] = []
    for row in group.rows:
        step_S, asked_S = _curve(row.run.steps, "step"), _curve(row.run.steps, "density_asked")
        if (asked_S < 1).any():
            had_S = _curve(row.run.steps, "density_had")
            look: dict[str, Any] = looks[row.series].line | {"linewidth": 1.1}
            axes.plot(*_thin(step_S, had_S), **look)
            axes.plot(*_thin(step_S, asked_S), color=MUTED, linewidth=1, linestyle=(0, (1.2, 1.2)))
            seen += [*had_S.tolist(), *asked_S.tolist()]
    _scale(axes, "y", seen, percent)
    return bool(seen)


def _payload(figure: Figure, group: Group, looks: Looks) -> bool:
    """What a rank hands to its collectives in a step: how much, on a scale of powers of ten, and of what."""
    rows = [row for row in group.rows if row.values["payload_bytes_per_step"]]
    if not rows:
        return False
    how_much, of_what = _bars(figure, rows, 2)
    totals = [row.values["payload_bytes_per_step"] for row in rows]
    least = 10 ** math.floor(math.log10(min(totals)) - 0.3)
    how_much.set(xscale="log", xlim=(least, max(totals) * 10))
    how_much.xaxis.set_major_formatter(FuncFormatter(lambda count, _: size(count)))
    how_much.xaxis.set_minor_formatter(NullFormatter())
    for i, total in enumerate(totals):
        how_much.barh(i, total - least, left=least, height=0.62, color=MUTED)
        how_much.annotate(size(total), (total, i), (4, 0), textcoords="offset points", va="center")
    shares = [
        {kind: count / total for kind, count in row.run.figures["payload_per_step"].items()}
        for row, total in zip(rows, totals, strict=True)
    ]
    _stack(of_what, shares, group.kinds)
    of_what.xaxis.set_major_formatter(FuncFormatter(lambda share, _: percent(share)))
    return True


def _step_time(figure: Figure, group: Group, looks: Looks) -> bool:
    """Of the slowest rank. Dot: median; thick line: to the 95th percentile; thin line: to the 99th."""
    rows = [row for row in group.rows if row.values["step_seconds_p50"]]
    if not rows:
        return False
    (axes,) = _bars(figure, rows, 1)
    for i, row in enumerate(rows):
        p50, p95, p99 = (row.values[f"step_seconds_{q}"] for q in ("p50", "p95", "p99"))
        colour = looks[row.series].colour
        axes.plot([p50, p99], [i, i], color=colour, linewidth=1.2)
        axes.plot([p50, p95], [i, i], color=colour, linewidth=4, solid_capstyle="butt")
        axes.plot(p50, i, "o", color=colour, markersize=7)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda seconds, _: duration(seconds)))
    return True


def _phases(figure: Figure, group: Group, looks: Looks) -> bool:
    """Mean over rank 0's steps; a profiled run waits for its device after each phase."""
    profiled = {
        row.label: (row, phases)
        for row in group.rows
        if (phases := [step["phases"] for step in row.run.steps if step.get("phases")])
    }
    if not profiled:
        return False
    (axes,) = _bars(figure, [row for row, _ in profiled.values()], 1)
    names = list(dict.fromkeys(name for _, phases in profiled.values() for each in phases for name in each))
    means = [
        {name: sum(each.get(name, 0.0) for each in phases) / len(phases) for name in names}
        for _, phases in profiled.values()
    ]
    _stack(axes, means, names)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda seconds, _: duration(seconds)))
    return True


FIGURES: dict[str, Callable[[Figure, Group, Looks], bool]] = {
    "{metric} by epoch": _metric_by_epoch,
    "{metric} by traffic": _metric_by_traffic,
    "Training loss": _loss_by_step,
    "Density": _density_by_step,
    "Payload of a step": _payload,
    "Step time": _step_time,
    "Phases of a step": _phases,
}


# What the figures share.


def _bars(figure: Figure, rows: Sequence[Row], num_axes: int) -> list[Axes]:
    """Axes side by side with a line for each run, the first on top."""
    figure.set_size_inches(5.6, max(1.6, 0.9 + 0.34 * len(rows)))
    grid = figure.subplots(1, num_axes, sharey=True, squeeze=False)
    for axes in grid.flat:
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
    labels = [textwrap.fill(row.label, 26, max_lines=2, placeholder=" …") for row in rows]
    grid[0, 0].set_yticks(range(len(rows)), labels)
    grid[0, 0].set_ylim(len(rows) - 0.5, -0.5)
    return list(grid.flat)


def _stack(axes: Axes, parts: Sequence[dict[str, float]], names: Sequence[str]) -> None:
    """Stacked bars, and above them a legend of their parts."""
    left_R = numpy.zeros(len(parts))
    for i, name in enumerate(names):
        width_R = numpy.array([each.get(name, 0.0) for each in parts])
        colour = (*PALETTE, MUTED)[min(i, len(PALETTE))]
        axes.barh(range(len(parts)), width_R, left=left_R, height=0.62, color=colour, label=name)
        left_R += width_R
    axes.legend(
        loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3, fontsize=8, handlelength=1, columnspacing=1
    )


def _scale(axes: Axes, which: str, values: Iterable[float], text: Callable[[float], str]) -> None:
    """Label the axis in its unit, and make it logarithmic where the values span more than a power of ten."""
    positive = [value for value in values if value > 0]
    axis = axes.xaxis if which == "x" else axes.yaxis
    if positive and max(positive) > 10 * min(positive):
        axes.set(**{f"{which}scale": "log"})
        axis.set_minor_formatter(NullFormatter())
    axis.set_major_formatter(FuncFormatter(lambda value, _: text(value)))


def _curve(records: Sequence[dict[str, Any]], field: str) -> Curve:
    """A field of all records; NaN, which leaves a gap in the curve, where it is null."""
    return numpy.array([record[field] for record in records], dtype=numpy.float64)


def _evaluations(row: Row, group: Group) -> Curve:
    return _curve([each["metrics"] for each in row.run.epochs], group.metric)


def _smooth(y_S: Curve, window: int) -> Curve:
    """The mean of the finite values among the last `window`."""
    finite_S = numpy.isfinite(y_S)
    sums_S, counts_S = (
        numpy.convolve(values, numpy.ones(window))[: len(y_S)]
        for values in (numpy.where(finite_S, y_S, 0.0), finite_S.astype(float))
    )
    return numpy.divide(sums_S, counts_S, out=numpy.full(len(y_S), numpy.nan), where=counts_S > 0)


def _thin(x_S: Curve, y_S: Curve) -> tuple[Curve, Curve]:
    """The curve's lowest and highest point in each of so many stretches."""
    if len(x_S) <= POINTS:
        return x_S, y_S
    kept = {0, len(x_S) - 1}
    for stretch in numpy.array_split(numpy.arange(len(x_S)), POINTS // 2):
        if numpy.isfinite(y_S[stretch]).any():
            kept |= {int(stretch[numpy.nanargmin(y_S[stretch])]), int(stretch[numpy.nanargmax(y_S[stretch])])}
        else:
            kept.add(int(stretch[0]))
    order = sorted(kept)
    return x_S[order], y_S[order]
