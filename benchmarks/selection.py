"""Measures the number of elements that threshold methods select, relative to the target number (k̂/k).

    python benchmarks/selection.py            # measure, and write benchmarks/results/selection.csv
    python benchmarks/selection.py --table    # print the table of docs/explanation/selection.md
    python benchmarks/selection.py --methods gaussiank    # measure only these, and keep the other rows

The vectors have 10^6 independent elements, all drawn from one seed; there is one rank and no memory. The
results are the mean and standard deviation of k̂/k over 20 vectors. Adaptive methods first process these
vectors five times without being counted.
"""
# N = elements of the vector

import argparse
import csv
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sage import registry
from sage.comm.wire import Wire
from sage.reducers.topk import num_kept
from sage.reduction.layout import Layout
from sage.rng import generator

RESULTS = Path(__file__).parent / "results" / "selection.csv"
SIZE, REPEATS, SETTLING = 1_000_000, 20, 100
DISTRIBUTIONS = ("normal", "Laplace", "Student-t(4)", "70 % zeros")
DENSITIES = (0.1, 0.01, 0.001)
METHODS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("topk", {}),
    ("mstopk", {}),
    ("dgc", {}),
    ("dgc", {"rule": "grace"}),
    ("redsync", {}),
    ("redsync", {"rule": "released"}),
    ("redsync", {"trim": True}),
    ("redsync", {"rule": "released", "trim": True}),
    ("gaussiank", {}),
    ("gaussiank", {"corrections": 0}),
    ("gaussiank", {"rule": "paper"}),
    ("gaussiank", {"rule": "released"}),
    ("gaussiank", {"rule": "released", "corrections": 0}),
    *(("sidco", {"fit": fit}) for fit in ("E", "GP", "P")),
    *(("sidco", {"fit": fit, "adapt": "paper"}) for fit in ("E", "GP", "P")),
    *(("sidco", {"fit": fit, "stages": 1}) for fit in ("E", "GP", "P")),
    ("sidco", {"fit": "GP", "quantile": "closed"}),
)
FIELDS: tuple[str, ...] = (
    "method",
    "options",
    "distribution",
    "density",
    "mean",
    "sd",
    "least",
    "most",
    "stages",
    "repeats",
    "n",
)


def drawn(distribution: str, n: int, number: int) -> Tensor:
    """Return one vector of a distribution."""
    dice = generator(0, DISTRIBUTIONS.index(distribution), number)
    normal_N = torch.randn(n, generator=dice)
    match distribution:
        case "normal":
            return normal_N
        case "Laplace":
            return normal_N.sign() * torch.empty(n).exponential_(generator=dice)
        case "Student-t(4)":
            chi_N = sum((torch.randn(n, generator=dice) ** 2 for _ in range(4)), torch.zeros(n))
            return normal_N / (chi_N / 4).sqrt()
        case "70 % zeros":
            return normal_N * (torch.rand(n, generator=dice) < 0.3)
    raise ValueError(f"distribution={distribution!r}: expected one of {', '.join(DISTRIBUTIONS)}")


def ratios(
    name: str, options: dict[str, Any], density: float, vectors: list[Tensor], settling: int
) -> tuple[list[float], float]:
    """Return k̂/k of every vector after `settling` warm-up vectors, and the mean number of stages used."""
    reducer = registry.load("reducers", name)(density=density, **options)
    n = vectors[0].numel()
    reducer.bind(Layout.of([("vector", (n,))]))
    wire, k = Wire(0, 1), num_kept(density, n)
    for step in range(settling):
        reducer.take(vectors[step % len(vectors)], None, wire)
    counts, stages = [], []
    for signal_N in vectors:
        counts.append(reducer.take(signal_N, None, wire)[1].numel() / k)
        stages.append(reducer.report().get("stages", 1.0))
    return counts, statistics.mean(stages)


def format_options(options: dict[str, Any]) -> str:
    """Return the options as written on the command line."""
    return " ".join(f"--{name}" if value is True else f"--{name} {value}" for name, value in options.items())


def measure(n: int, repeats: int, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Measure these methods and yield their rows."""
    for distribution in DISTRIBUTIONS:
        vectors = [drawn(distribution, n, number) for number in range(repeats)]
        for name, options in METHODS:
            if name not in names:
                continue
            adapts = name == "sidco" and "stages" not in options
            for density in DENSITIES:
                achieved, stages = ratios(name, options, density, vectors, SETTLING if adapts else 0)
                yield {
                    "method": name,
                    "options": format_options(options),
                    "distribution": distribution,
                    "density": density,
                    "mean": f"{statistics.mean(achieved):.4f}",
                    "sd": f"{statistics.stdev(achieved):.4f}",
                    "least": f"{min(achieved):.4f}",
                    "most": f"{max(achieved):.4f}",
                    "stages": f"{stages:.2f}" if name == "sidco" else "",
                    "repeats": len(achieved),
                    "n": n,
                }


def table(rows: list[dict[str, str]]) -> str:
    """Return a table of mean ± standard deviation, one row per method; errors above 20 % are bold."""
    columns = [(distribution, density) for distribution in DISTRIBUTIONS for density in DENSITIES]
    lines = [
        "| k̂/k | " + " | ".join(f"{distribution}, {density:g}" for distribution, density in columns) + " |",
        "|---|" + "---:|" * len(columns),
    ]
    cells = {(r["method"], r["options"], r["distribution"], float(r["density"])): r for r in rows}
    for name, options in METHODS:
        shown = []
        for distribution, density in columns:
            row = cells[name, format_options(options), distribution, density]
            cell = f"{float(row['mean']):.2f} ± {float(row['sd']):.2f}"
            shown.append(cell if abs(float(row["mean"]) - 1) <= 0.2 else f"**{cell}**")
        title = f"`{name} {format_options(options)}`" if options else f"`{name}`"
        lines.append(f"| {title} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def main() -> int:
    """Measure, or print the table of the measured rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--table", action="store_true", help="print the table of the measured rows")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--methods", nargs="+", default=sorted({name for name, _ in METHODS}))
    given = parser.parse_args()
    if given.table:
        with given.output.open(newline="") as file:
            print(table(list(csv.DictReader(file))))
        return 0
    torch.set_num_threads(1)
    rows = []
    for row in measure(SIZE, REPEATS, given.methods):
        rows.append({name: str(value) for name, value in row.items()})
        print(*row.values(), flush=True)
    if given.output.exists():
        with given.output.open(newline="") as file:
            rows += [row for row in csv.DictReader(file) if row["method"] not in given.methods]
    with given.output.open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(sorted(rows, key=_place))
    return 0


def _place(row: Mapping[str, Any]) -> tuple[int, int, float]:
    """Return the sort key of a row: distribution, method and density."""
    methods = [(name, format_options(options)) for name, options in METHODS]
    place = methods.index((row["method"], row["options"]))
    return DISTRIBUTIONS.index(row["distribution"]), place, -float(row["density"])


if __name__ == "__main__":
    sys.exit(main())
