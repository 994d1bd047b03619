"""Figures of `sage bench`'s results."""

import statistics
from collections.abc import Sequence
from io import StringIO
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from sage.bench.density_result import DensityResult
from sage.bench.repetitions import Row
from sage.report.svg import PALETTE

MUTED = "0.5"
STYLE: dict[Any, Any] = {"svg.hashsalt": "sage", "svg.fonttype": "none", "font.size": 8}


PAGE = 12.0
"""The total height of many traces in inches, so that a figure with three densities has a page's shape."""


def density_by_step(results: Sequence[DensityResult], tolerance: float) -> str:
    """Achieved density / target by step: one row of axes per trace, one column per density.

    A dotted line marks the step at which the learning rate dropped.
    """
    traces = list(dict.fromkeys(result.label for result in results))
    densities = list(dict.fromkeys(result.density for result in results))
    styles = line_styles(list(dict.fromkeys(result.rule for result in results)))
    with matplotlib.rc_context(STYLE):
        height = min(1.9, PAGE / len(traces))
        figure = Figure(figsize=(3 * len(densities), height * len(traces) + 0.4), layout="constrained")
        grid = figure.subplots(len(traces), len(densities), sharex=True, sharey=True, squeeze=False)
        for result in results:
            axes = grid[traces.index(result.label), densities.index(result.density)]
            curve = [max(achieved, 1e-3) for achieved in result.curve]
            axes.plot(curve, **styles[result.rule])
            if result.drop is not None:
                axes.axvline(result.drop, color="0.6", linestyle=":", linewidth=1, zorder=0)
        for axes in grid.flat:
            axes.axhspan(1 - tolerance, 1 + tolerance, color="0.9", zorder=0)
            axes.set(yscale="log", ylim=(0.01, 30))
            axes.spines[["top", "right"]].set_visible(False)
        for axes, trace in zip(grid[:, 0], traces, strict=True):
            axes.set_ylabel(trace.replace(", ", "\n", 1))
        for first, last, density in zip(grid[0], grid[-1], densities, strict=True):
            first.set_title(f"target {density:g}")
            last.set_xlabel("step")
        figure.supylabel("density / target", fontsize="medium")
        lines = [Line2D([], [], **look) for look in styles.values()]
        figure.legend(lines, list(styles), loc="outside upper center", ncols=4, frameon=False)
        return _svg(figure)


def throughput_by_reducer(rows: Sequence[Row]) -> str:
    """Bytes compressed per second: one row of axes per input, one column per density.

    Reducers are ordered by their median speed. Reducers without a density are grey and equal in all columns.
    A point is a median, and its line the quartiles.
    """
    inputs = list(dict.fromkeys(row.input for row in rows))
    names = sorted({row.case.name for row in rows}, key=lambda name: (-_typical(rows, name), name))
    known = dict.fromkeys(row.case.density for row in rows if row.case.density is not None)
    densities: list[float | None] = [*known] or [None]
    with matplotlib.rc_context(STYLE):
        height = (0.16 * len(names) + 0.4) * len(inputs) + 0.4
        figure = Figure(figsize=(1 + 2.3 * len(densities), height), layout="constrained")
        grid = figure.subplots(len(inputs), len(densities), sharex=True, sharey=True, squeeze=False)
        for row in rows:
            for axes, density in zip(grid[inputs.index(row.input)], densities, strict=True):
                if row.case.density in (None, density):
                    _point(axes, names.index(row.case.name), row)
        for axes in grid.flat:
            axes.set(xscale="log")
            axes.grid(color="0.9")
            axes.set_axisbelow(True)
            axes.spines[["top", "right"]].set_visible(False)
        grid[0, 0].set(yticks=range(len(names)), yticklabels=names, ylim=(len(names) - 0.4, -0.6))
        for axes, name in zip(grid[:, 0], inputs, strict=True):
            axes.set_ylabel(name)
        for first, last, density in zip(grid[0], grid[-1], densities, strict=True):
            first.set_title("" if density is None else f"density {density:g}")
            last.set_xlabel("MB/s compressed")
        return _svg(figure)


def _typical(rows: Sequence[Row], name: str) -> float:
    done = [row.megabytes_per_second for row in rows if row.case.name == name and not row.error]
    return statistics.median(done or [0.0])


def _point(axes: Axes, y: int, row: Row) -> None:
    if row.error:
        axes.text(0.02, y, "failed", transform=axes.get_yaxis_transform(), va="center", size=6)
        return
    colour = PALETTE[0] if row.case.density is not None else MUTED
    fast, slow = (row.dense / 1e6 / seconds for seconds in (row.compress.low, row.compress.high))
    axes.plot([slow, fast], [y, y], color=colour, linewidth=1)
    axes.plot(row.megabytes_per_second, y, "o", color=colour, markersize=3)


def _svg(figure: Figure) -> str:
    buffer = StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None}, facecolor="white")
    return buffer.getvalue()


def line_styles(rules: Sequence[str]) -> dict[str, dict[str, Any]]:
    """A colour per controller and a dash pattern per variant; the variant's name follows a comma."""
    controllers = list(dict.fromkeys(rule.partition(",")[0] for rule in rules))
    dashes = {controller: ["-", "--", ":"] for controller in controllers}
    styles = {}
    for rule in rules:
        controller = rule.partition(",")[0]
        colour = PALETTE[controllers.index(controller) % len(PALETTE)]
        styles[rule] = {"color": colour, "linestyle": dashes[controller].pop(0), "linewidth": 1}
    return styles
