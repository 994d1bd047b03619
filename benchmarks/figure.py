"""Draws the README's figure from the runs of real_data.sh: accuracy against bytes sent, one curve a reducer.

python benchmarks/figure.py RUNS [--workload resnet20-cifar10] [--output docs/figure.svg]
"""

import argparse
from itertools import accumulate
from pathlib import Path

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot

from sage.tell.record import read_metrics
from sage.tell.svg import PALETTE


def curve(run: Path, metric: str) -> tuple[list[float], list[float]]:
    """Bytes that a rank had sent by each evaluation, and the metric there."""
    records = read_metrics(run)
    sent = list(accumulate(record["wire_sent"] for record in records if record["kind"] == "step"))
    evaluations = [record for record in records if record["kind"] == "epoch"]
    return [sent[e["step"] - 1] for e in evaluations], [e["metrics"][metric] for e in evaluations]


def main() -> None:
    """Draw one line for each run of the workload."""
    parser = argparse.ArgumentParser(description="Draw a metric against the bytes sent.")
    parser.add_argument("runs", type=Path)
    parser.add_argument("--workload", default="resnet20-cifar10")
    parser.add_argument("--metric", default="accuracy")
    parser.add_argument("--output", type=Path, default=Path("docs/figure.svg"))
    given = parser.parse_args()
    figure, axes = pyplot.subplots(figsize=(7, 3.2), layout="constrained")
    for run, colour in zip(sorted(given.runs.glob(f"{given.workload}-*")), PALETTE, strict=False):
        reducer = run.name.removeprefix(f"{given.workload}-").rpartition("-")[0]
        bytes_E, metric_E = curve(run, given.metric)
        axes.plot(bytes_E, metric_E, marker="o", markersize=4, color=colour, label=reducer)
        axes.annotate(
            reducer,
            (bytes_E[-1], metric_E[-1]),
            (7, 0),
            textcoords="offset points",
            color=colour,
            va="center",
        )
    axes.set(xscale="log", xlabel="bytes that one rank has sent", ylabel=f"test {given.metric}")
    axes.xaxis.set_major_formatter(lambda count, _: f"{count / 1e6:g} MB")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.12)
    pyplot.rcParams["svg.hashsalt"] = "sage"
    figure.savefig(given.output, metadata={"Date": None}, facecolor="white")


if __name__ == "__main__":
    main()
