"""Plots the runs of controllers.sh: density relative to its target by step, and accuracy against bytes sent.

python benchmarks/controllers_figure.py benchmarks/real_data/controllers [--output docs/controllers.svg]
"""

import argparse
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from sage.report.runs import Run, read_runs
from sage.report.svg import PALETTE

ORDER = ("sage", "feedback", "quantile")


def main() -> None:
    """Draw one column of axes per density."""
    parser = argparse.ArgumentParser(description="Draw density by step, and accuracy against bytes.")
    parser.add_argument("runs", type=Path)
    parser.add_argument("--output", type=Path, default=Path("docs/controllers.svg"))
    given = parser.parse_args()
    runs, _ = read_runs([given.runs])
    exact = [run for run in runs if run.config["reducer"] == "exact"]
    ours = sorted((run for run in runs if run not in exact), key=lambda run: ORDER.index(controller(run)))
    densities = sorted({run.config["reducer_options"]["density"] for run in ours}, reverse=True)
    style: dict[Any, Any] = {"svg.hashsalt": "sage", "svg.fonttype": "none", "font.size": 8}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(4 * len(densities), 4.6), layout="constrained")
        grid = figure.subplots(2, len(densities), squeeze=False, sharey="row")
        for (above, below), density in zip(grid.T, densities, strict=True):
            of_density = [run for run in ours if run.config["reducer_options"]["density"] == density]
            draw_densities(above, of_density, density)
            draw_accuracies(below, [*exact, *of_density])
            above.set_title(f"target {density:g}")
        grid[0, 0].set_ylabel("density / target")
        grid[1, 0].set_ylabel("test accuracy")
        handles, labels = grid[1, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=4, frameon=False)
        figure.savefig(given.output, metadata={"Date": None}, facecolor="white")


def draw_densities(axes: Axes, runs: list[Run], density: float) -> None:
    """Plot the ratio of achieved to target density at each step, and the band of ±20 %."""
    axes.axhspan(0.8, 1.2, color="0.9", zorder=0)
    for run in runs:
        achieved = run.steps["density_had"] / density
        axes.plot(achieved, color=colour(run), linewidth=0.8)
    axes.set(xlabel="step", yscale="log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def draw_accuracies(axes: Axes, runs: list[Run]) -> None:
    """Plot the accuracy at each evaluation against the bytes that one rank had sent up to then."""
    for run in runs:
        sent = run.steps["wire_sent"].cumsum()
        at = [sent[epoch["step"] - 1] for epoch in run.epochs]
        accuracy = [epoch["metrics"]["accuracy"] for epoch in run.epochs]
        axes.plot(at, accuracy, marker="o", markersize=3, color=colour(run), label=controller(run))
    axes.set(xlabel="bytes that one rank has sent", xscale="log")
    axes.xaxis.set_major_formatter(lambda count, _: f"{count / 1e6:g} MB")
    axes.grid(alpha=0.3)


def controller(run: Run) -> str:
    """Return the name of the threshold controller; `exact` for a run without one."""
    return str(run.config["reducer_options"].get("controller", run.config["reducer"]))


def colour(run: Run) -> str:
    """Return the colour that `sage bench density` uses for the same controller."""
    return PALETTE[ORDER.index(controller(run))] if controller(run) in ORDER else "0.5"


if __name__ == "__main__":
    main()
