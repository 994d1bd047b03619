"""Tables and a figure of low_communication.py: loss against steps, bytes and seconds on the slow link.

With --folder, the runs are first collected into the CSV file; without it, that file is read.

    python benchmarks/low_communication_figure.py --folder runs/low-communication

A step's seconds are the median over the timed steps, without the first, that have the same payload, so that a
step without communication, a dense one and a compressed one each have their own. Evaluations are left out.
"""

import argparse
import csv
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

import matplotlib
from low_communication import METHODS, SEEDS, WORLD_SIZES, chosen, final_loss, folder_of
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sage.report.runs import Run, read_runs
from sage.report.seeds import Spread, spread, t_quantile
from sage.report.svg import DASHES, PALETTE

RESULTS = Path(__file__).parent / "results"

FIELDS: Sequence[str] = ("method", "lr", "ranks", "seed", "step", "loss", "bytes", "seconds")

SIGNIFICANT = 0.004 / 0.0013
"""Standard deviations: Track 3 of modded-nanogpt asks for .004 where one is .0013 (p < .001)."""

Row = dict[str, Any]


def payloads(folder: Path) -> list[int]:
    """Return the payload bytes of each step of a folder's run, without control messages."""
    records = map(json.loads, next(folder.glob("*/metrics.jsonl")).read_text().splitlines())
    steps = [record for record in records if record["kind"] == "step"]
    return [sum(count for kind, count in step["bytes"].items() if kind != "control") for step in steps]


def seconds_by_payload(folder: Path) -> Mapping[int, float]:
    """Return the median seconds of the timed steps of each payload."""
    run = only_run(folder)
    times = defaultdict(list)
    for payload, seconds in list(zip(payloads(folder), run.steps["seconds"], strict=True))[1:]:
        times[payload].append(float(seconds))
    return {payload: median(of_payload) for payload, of_payload in times.items()}


def step_seconds(payload: int, known: Mapping[int, float]) -> float:
    """Return the seconds of a step from those of its payload, which was timed to within 2 %.

    Raises:
        ValueError: if no such step was timed.
    """
    nearest = min(known, key=lambda other: abs(other - payload))
    if abs(nearest - payload) > 0.02 * max(payload, 1):
        raise ValueError(f"no timed step has a payload of {payload} B; there are {sorted(known)}")
    return known[nearest]


def only_run(folder: Path) -> Run:
    """Return the one run under a folder."""
    runs, unreadable = read_runs([folder])
    if len(runs) != 1:
        raise ValueError(f"{folder} has {len(runs)} runs, not 1; {unreadable}")
    return runs[0]


def collect(root: Path) -> Iterator[Row]:
    """Yield each evaluation of each finished training, with the bytes and seconds up to it."""
    rates = chosen(root)
    for ranks in WORLD_SIZES:
        for name in METHODS:
            links = folder_of(root, "links", name, ranks)
            known = None if final_loss(links) is None else seconds_by_payload(links)
            for seed in SEEDS:
                folder = folder_of(root, "train", name, ranks, seed)
                if not folder.exists() or not (run := only_run(folder)).is_finished:
                    continue
                of_step = payloads(folder)
                for epoch in run.epochs:
                    step, loss = epoch["step"], epoch["metrics"]["loss"]
                    seconds = sum(step_seconds(each, known) for each in of_step[:step]) if known else math.nan
                    sent = int(run.steps["wire_sent"][:step].sum())
                    values = (name, rates[name], ranks, seed, step, loss, sent, round(seconds, 2))
                    yield dict(zip(FIELDS, values, strict=True))


def read(path: Path) -> list[Row]:
    """Read the CSV file."""
    with path.open(newline="") as file:
        return [
            {key: value if key == "method" else float(value) for key, value in row.items()}
            for row in csv.DictReader(file)
        ]


def write(path: Path, rows: Iterable[Row]) -> None:
    """Write the CSV file."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def finals(rows: Sequence[Row], name: str, ranks: int) -> Mapping[int, Row]:
    """Return the last evaluation of a method for each seed."""
    ours = [row for row in rows if row["method"] == name and row["ranks"] == ranks]
    last: dict[int, Row] = {}
    for row in sorted(ours, key=lambda row: row["step"]):
        last[int(row["seed"])] = row
    return last


def verdict(ours: Spread, reference: Spread) -> str:
    """Compare two mean losses by the rule of Track 3, with the pooled standard deviation of their seeds.

    >>> verdict(Spread(2.0, 0.01, 6), Spread(2.1, 0.01, 6))
    'better'
    >>> verdict(Spread(2.0, 0.1, 6), Spread(2.1, 0.1, 6))
    'undecided'
    """
    if ours.sd is None or reference.sd is None:
        return "one seed"
    degrees = ours.num + reference.num - 2
    pooled = ((ours.num - 1) * ours.sd**2 + (reference.num - 1) * reference.sd**2) / degrees
    difference = (ours.mean - reference.mean) / math.sqrt(1 / ours.num + 1 / reference.num)
    if abs(difference) < SIGNIFICANT * math.sqrt(pooled):
        return "undecided"
    return "better" if difference < 0 else "worse"


def table(rows: Sequence[Row], ranks: int) -> Iterator[str]:
    """Yield the lines of a Markdown table of the final losses of all methods, the best first."""
    yield "| method | rate | n | validation loss | minus bf16, 95 % interval | verdict | MB | seconds |"
    yield "|---|---:|---:|---:|---:|---|---:|---:|"
    base = finals(rows, "bf16", ranks)
    reference = spread(row["loss"] for row in base.values())
    assert reference is not None
    of_method = {name: last for name in METHODS if (last := finals(rows, name, ranks))}
    for name, last in sorted(
        of_method.items(), key=lambda item: fmean(row["loss"] for row in item[1].values())
    ):
        loss = spread(row["loss"] for row in last.values())
        difference = spread(last[seed]["loss"] - base[seed]["loss"] for seed in last.keys() & base.keys())
        assert loss is not None
        assert difference is not None
        half = math.nan if loss.sd is None else t_quantile(loss.num - 1) * loss.sd / math.sqrt(loss.num)
        low, high = difference.interval or (math.nan, math.nan)
        against = "" if name == "bf16" else f"{difference.mean:+.3f} ({low:+.3f} to {high:+.3f})"
        words = "baseline" if name == "bf16" else verdict(loss, reference)
        row = next(iter(last.values()))
        seconds = "–" if math.isnan(row["seconds"]) else f"{row['seconds']:.0f}"
        yield (
            f"| {name} | {row['lr']:g} | {loss.num} | {loss.mean:.3f} ± {half:.3f} | {against} | {words} "
            f"| {row['bytes'] / 1e6:.1f} | {seconds} |"
        )


def draw(rows: Sequence[Row], output: Path) -> None:
    """Draw loss against steps, bytes and seconds: a row of axes for each number of ranks."""
    style: dict[Any, Any] = {"svg.hashsalt": "sage", "svg.fonttype": "none", "font.size": 8}
    columns = {
        "step": "steps",
        "bytes": "bytes that a rank has sent",
        "seconds": "seconds on links of 10 Mbit/s",
    }
    lowest = min(row["loss"] for row in rows) - 0.05
    world_sizes = sorted({int(row["ranks"]) for row in rows})
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(10, 0.8 + 2.9 * len(world_sizes)), layout="constrained")
        grid = figure.subplots(len(world_sizes), len(columns), squeeze=False, sharey=True)
        for line, ranks in zip(grid, world_sizes, strict=True):
            for axes, (field, label) in zip(line, columns.items(), strict=True):
                for k, name in enumerate(METHODS):
                    curve(
                        axes,
                        [row for row in rows if (row["method"], row["ranks"]) == (name, ranks)],
                        field,
                        k,
                    )
                axes.set(xlabel=label, xscale="linear" if field == "step" else "log", ylim=(lowest, 3.2))
                axes.grid(alpha=0.3)
            line[0].set_ylabel(f"validation loss, {ranks} ranks")
        handles, labels = grid[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=6, frameon=False)
        figure.savefig(output, metadata={"Date": None}, facecolor="white")


def curve(axes: Axes, rows: Sequence[Row], field: str, k: int) -> None:
    """Draw the k-th method: the mean loss, and the range over seeds."""
    of_step: dict[int, list[Row]] = defaultdict(list)
    for row in rows:
        of_step[int(row["step"])].append(row)
    x = [fmean(row[field] for row in of_step[step]) for step in sorted(of_step)]
    losses = [[row["loss"] for row in of_step[step]] for step in sorted(of_step)]
    colour, dash = PALETTE[k % len(PALETTE)], DASHES[k // len(PALETTE)]
    name = rows[0]["method"] if rows else None
    line = axes.plot(x, [fmean(each) for each in losses], color=colour, linewidth=1, label=name)[0]
    if dash:
        line.set_dashes(dash)
    low, high = [min(each) for each in losses], [max(each) for each in losses]
    axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)


def main() -> None:
    """Collect, print the tables, draw."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--folder", type=Path, help="of low_communication.py")
    parser.add_argument("--csv", type=Path, default=RESULTS / "low_communication.csv")
    parser.add_argument("--output", type=Path, default=Path("docs/low-communication.svg"))
    given = parser.parse_args()
    if given.folder:
        write(given.csv, collect(given.folder))
    rows = read(given.csv)
    for ranks in sorted({int(row["ranks"]) for row in rows if row["method"] == "bf16"}):
        print(f"\n{ranks} ranks\n", *table(rows, ranks), sep="\n")
    draw(rows, given.output)


if __name__ == "__main__":
    main()
