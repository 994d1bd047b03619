"""`sage compare`: compare two result sets, and end with an exit status that CI can use."""

import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from sage.exit_status import FAILED
from sage.output.units import MISSING, printable
from sage.report.compare.comparison import Comparison, compare, geometric_mean
from sage.report.compare.pairs import Paired, paired
from sage.report.runs import Run, read_runs

MAX_LISTED = 20
"""At most this many unpaired runs of a set are printed; --json has all."""


def main(a: Path, b: Path, *, factor: float = 1.05, force: bool = False, as_json: bool = False) -> int:
    """Compare the runs under two folders, A and B; return 1 if there is a regression from A to B, else 0.

    Raises:
        ValueError: if a path is not a folder, a set has no readable run, or no run has a counterpart.
    """
    (ours, damaged_a), (theirs, damaged_b) = _read("A", a), _read("B", b)
    left_out = {**damaged_a, **damaged_b}
    pairs = paired(ours, theirs)
    if not pairs.pairings:
        raise ValueError(
            f"no run of {a} has a counterpart in {b}: {len(ours)} and {len(theirs)} runs, of which none have "
            "the same configuration and seed and a result; run one sweep in both places"
        )
    comparisons = [compare(pairing, factor=factor, force=force) for pairing in pairs.pairings]
    status = FAILED if any(comparison.regressions for comparison in comparisons) else 0
    if as_json:
        print(json.dumps(_as_object(comparisons, pairs, left_out, status), indent=2))
        return status
    _show(comparisons, pairs, left_out, Console(width=None if sys.stdout.isatty() else 200))
    return status


def _read(name: str, path: Path) -> tuple[list[Run], dict[Path, str]]:
    runs, damaged = read_runs([path])
    if not runs:
        folder, why = next(iter(damaged.items()))
        raise ValueError(f"{name} has no run that can be read; the first of {len(damaged)}: {folder}: {why}")
    return runs, damaged


def headline(comparisons: Sequence[Comparison]) -> str:
    """State the number of regressions and the mean ratio of the step times."""
    worse = sum(bool(comparison.regressions) for comparison in comparisons)
    incomparable = sum(comparison.time.outcome == "not comparable" for comparison in comparisons)
    mean = geometric_mean(comparisons)
    return (
        f"{worse} of {len(comparisons)} configurations are worse in B."
        + (f" Step time, B over A: {mean:.3f}× (geometric mean)." if mean is not None else "")
        + (
            f" {incomparable} have times that are not comparable; --force compares them."
            if incomparable
            else ""
        )
    )


def _show(
    comparisons: Sequence[Comparison], pairs: Paired, left_out: Mapping[Path, str], console: Console
) -> None:
    console.print(Text(headline(comparisons), style="bold"))
    grid = Grid(box=SIMPLE_HEAD, pad_edge=False)
    for name in ("configuration", "seeds", "bytes", "step time, B over A", "metric, B minus A"):
        grid.add_column(name, overflow="fold")
    for comparison in comparisons:
        cells = [Text(comparison.label), Text(str(len(comparison.seeds)))]
        for verdict in (comparison.bytes, comparison.time, comparison.accuracy):
            style = {"worse": "bold red", "better": "green", "not comparable": "yellow"}
            cells.append(Text(f"{verdict.outcome}: {verdict.text}", style=style.get(verdict.outcome, "")))
        grid.add_row(*cells)
    console.print(grid)
    for comparison in comparisons:
        if comparison.result.outcome != "same":
            console.print(Text(f"{comparison.label}: {comparison.result.text}"), soft_wrap=True)
    for name, runs in (("A", pairs.only_a), ("B", pairs.only_b)):
        for run in runs[:MAX_LISTED]:
            console.print(Text(f"Only in {name}: {printable(run.folder)} ({run.status})"), soft_wrap=True)
        if len(runs) > MAX_LISTED:
            console.print(Text(f"Only in {name}: {len(runs) - MAX_LISTED} more runs; --json lists all"))
    for folder, why in left_out.items():
        console.print(Text(f"Left out: {printable(folder)}: {why}", style="red"), soft_wrap=True)


def _as_object(
    comparisons: Sequence[Comparison], pairs: Paired, left_out: Mapping[Path, str], status: int
) -> dict[str, Any]:
    return {
        "status": status,
        "headline": headline(comparisons),
        "configurations": [_one(comparison) for comparison in comparisons],
        "only_a": [str(run.folder) for run in pairs.only_a],
        "only_b": [str(run.folder) for run in pairs.only_b],
        "left_out": {str(folder): why for folder, why in left_out.items()},
    }


def _one(comparison: Comparison) -> dict[str, Any]:
    ratio, difference = comparison.step_ratio, comparison.metric_difference
    return {
        "label": comparison.label,
        "seeds": list(comparison.seeds),
        "regressions": comparison.regressions,
        **{name: {"outcome": v.outcome, "text": v.text} for name, v in comparison.verdicts.items()},
        "step_ratio": None if ratio is None else ratio.ratio,
        "step_ratio_interval": None if ratio is None or ratio.interval is None else list(ratio.interval),
        "metric": comparison.metric or MISSING,
        "metric_difference": None if difference is None else _finite(difference.mean),
        "metric_difference_interval": None
        if difference is None or difference.interval is None
        else list(difference.interval),
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
