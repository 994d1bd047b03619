"""Plots docs/figure.svg from the runs of figure.sh: a metric against bytes sent, one line per reducer.

A line is the mean over the seeds; its band extends from the lowest seed to the highest.

python benchmarks/figure.py RUNS [--output docs/figure.svg]
"""
# E = evaluations, R = runs (seeds)

import argparse
from pathlib import Path

import matplotlib
import numpy
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from sage.output.units import size, spaced
from sage.report.groups import Group, grouped
from sage.report.runs import Run, read_runs
from sage.report.settings import Setting
from sage.report.svg import PALETTE

ORDER = ("exact", "bf16", "topk", "sage")


def main() -> None:
    """Plot the runs, which must all be of one workload."""
    parser = argparse.ArgumentParser(description="Draw a metric against the bytes sent.")
    parser.add_argument("runs", type=Path)
    parser.add_argument("--output", type=Path, default=Path("docs/figure.svg"))
    given = parser.parse_args()
    runs, _ = read_runs([given.runs])
    (group,) = grouped(runs)
    with matplotlib.rc_context({"svg.hashsalt": "sage", "svg.fonttype": "none"}):
        figure = Figure(figsize=(7, 3.2), layout="constrained")
        draw(figure.subplots(), group)
        figure.savefig(given.output, metadata={"Date": None}, facecolor="white")
    for setting in group.settings:
        print(line(setting, group.metric))


def draw(axes: Axes, group: Group) -> None:
    """Plot one line and one band per setting."""
    for setting, colour in zip(sorted(group.settings, key=place), PALETTE, strict=False):
        sent_E, metric_RE = curves(setting, group.metric)
        mean_E = metric_RE.mean(0)
        axes.fill_between(sent_E, metric_RE.min(0), metric_RE.max(0), color=colour, alpha=0.2, linewidth=0)
        axes.plot(sent_E, mean_E, marker="o", markersize=4, color=colour, label=setting.label)
    axes.set(xscale="log", xlabel="bytes that one rank has sent", ylabel=f"test {spaced(group.metric)}")
    axes.xaxis.set_major_formatter(lambda count, _: size(count))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper left", frameon=False)


def curves(setting: Setting, metric: str) -> tuple[NDArray[numpy.float64], NDArray[numpy.float64]]:
    """Return the mean bytes that a rank had sent up to each evaluation (E), and each seed's metric (R, E)."""
    runs = [row.run for row in setting.counted]
    sent_RE = [[sent_by(run, epoch["step"]) for epoch in run.epochs] for run in runs]
    metric_RE = [[epoch["metrics"][metric] for epoch in run.epochs] for run in runs]
    return numpy.array(sent_RE).mean(0), numpy.array(metric_RE, dtype=numpy.float64)


def sent_by(run: Run, step: int) -> float:
    """Return the bytes that rank 0 had sent before a step."""
    return float(run.steps["wire_sent"][run.steps["step"] < step].sum())


def place(setting: Setting) -> tuple[int, str]:
    """Return the index of a setting in the colour order."""
    reducer = setting.rows[0].values["reducer"]
    return ORDER.index(reducer) if reducer in ORDER else len(ORDER), setting.label


def line(setting: Setting, metric: str) -> str:
    """Return one row of a Markdown table."""
    final = [row.values["final"] for row in setting.counted]
    values = setting.counted[0].values
    target = f"{values['density_asked']:g}" if values["density_asked"] is not None else "–"
    loss = numpy.mean([row.values["train_loss"] for row in setting.counted])
    deviation = numpy.std(final, ddof=1) if len(final) > 1 else 0.0
    sent = size(setting.mean("wire_sent_bytes_per_step"))
    return (
        f"| `{setting.label}` | {target} | {setting.mean('density_had'):.4f} | {len(final)} | "
        f"{numpy.mean(final):.4f} ± {deviation:.4f} | {loss:.3f} | "
        f"{sent} | {setting.mean('compression'):.1f}× |"
    )


if __name__ == "__main__":
    main()
