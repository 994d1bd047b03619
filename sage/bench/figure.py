"""Draws what `sage bench` measured."""

from __future__ import annotations

from collections.abc import Sequence
from io import StringIO
from typing import TYPE_CHECKING, Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from sage.tell.svg import PALETTE

if TYPE_CHECKING:
    from sage.bench.density import Held


PAGE = 12.0
"""Inches that many traces share, so that a figure three densities wide has the shape of a page."""


def density_by_step(held: Sequence[Held], tolerance: float) -> str:
    """Density over its target, step by step: a row of axes for each trace, a column for each density.

    A dotted line stands where the learning rate dropped.
    """
    traces = list(dict.fromkeys(each.label for each in held))
    densities = list(dict.fromkeys(each.density for each in held))
    looks = looks_of(list(dict.fromkeys(each.rule for each in held)))
    with matplotlib.rc_context({"svg.hashsalt": "sage", "svg.fonttype": "none", "font.size": 8}):
        height = min(1.9, PAGE / len(traces))
        figure = Figure(figsize=(3 * len(densities), height * len(traces) + 0.4), layout="constrained")
        grid = figure.subplots(len(traces), len(densities), sharex=True, sharey=True, squeeze=False)
        for each in held:
            axes = grid[traces.index(each.label), densities.index(each.density)]
            curve = [max(had, 1e-3) for had in each.curve]
            axes.plot(curve, **looks[each.rule])
            if each.drop is not None:
                axes.axvline(each.drop, color="0.6", linestyle=":", linewidth=1, zorder=0)
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
        lines = [Line2D([], [], **look) for look in looks.values()]
        figure.legend(lines, list(looks), loc="outside upper center", ncols=4, frameon=False)
        buffer = StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None}, facecolor="white")
    return buffer.getvalue()


def looks_of(rules: Sequence[str]) -> dict[str, dict[str, Any]]:
    """A colour for each controller, and dashes for its variants, which are named after a comma."""
    controllers = list(dict.fromkeys(rule.partition(",")[0] for rule in rules))
    styles: dict[str, list[Any]] = {controller: ["-", "--", ":"] for controller in controllers}
    looks = {}
    for rule in rules:
        controller = rule.partition(",")[0]
        colour = PALETTE[controllers.index(controller) % len(PALETTE)]
        looks[rule] = {"color": colour, "linestyle": styles[controller].pop(0), "linewidth": 1}
    return looks
