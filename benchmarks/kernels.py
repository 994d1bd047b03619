"""Measures the native kernels on this machine against their bandwidth bound and against plain torch.

    python benchmarks/kernels.py                      # measure, and write benchmarks/results/kernels.json
    python benchmarks/kernels.py --check --output X   # fail if a figure is below half of its goal

The benchmark uses one thread. The candidates of a row alternate, one repeat of each after the other, on the
same vectors, so that other load on the machine affects all of them equally. Times are medians over the
repeats; ratios are medians of the per-repeat ratios, with quartiles. The bound is `torch.Tensor.add_`, which
moves as many bytes as a fused pass. `torch path` is the same step on `sage.ops.reference`; for the mean, it
is one `zero_` and one `index_add_`. `quantile` is SAGE's controller including the selection, compared with a
selection with a fixed threshold.
"""

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from goal_table import SCATTER_OVER_TORCH, SELECT, SELECT_OVER_TORCH, STEERED, TOP, top_over_torch
from torch import Tensor

from sage import ops
from sage.ops import native, reference
from sage.reduction.controllers import Quantile

RESULTS = Path(__file__).parent / "results" / "kernels.json"
SIZES = (100_000, 1_000_000, 10_000_000, 28_000_000)
DENSITIES = (0.001, 0.01, 0.1)
STEERED_SIZES = (1_000_000, 10_000_000)
"""Sizes at which the controller is also measured."""
RANKS = 4
Row = dict[str, Any]


@dataclass(frozen=True)
class Ratio:
    """The speedup over another candidate: median over the repeats, and quartiles."""

    median: float
    low: float
    high: float
    goal: float | None


def turns(
    contestants: dict[str, Callable[[], object]], prepare: Callable[[], object], seconds: float
) -> dict[str, list[float]]:
    """Return the seconds of every candidate in every repeat after two warm-up repeats, in random order."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    end = time.perf_counter() + seconds
    repeat = 0
    while repeat < 7 or (time.perf_counter() < end and repeat < 300):
        # Plain torch leaves cold caches and an empty heap; random order spreads this over all candidates.
        for name, run in random.sample(list(contestants.items()), len(contestants)):
            prepare()
            start = time.perf_counter()
            run()
            if repeat >= 2:
                times[name].append(time.perf_counter() - start)
        repeat += 1
    return times


def ratio(of: list[float], to: list[float], goal: float | None) -> Ratio:
    """Return the speedup of `of` over `to`, computed per repeat."""
    low, median, high = statistics.quantiles([b / a for a, b in zip(of, to, strict=True)], n=4)
    return Ratio(round(median, 3), round(low, 3), round(high, 3), goal)


def row(op: str, n: int, density: float, seconds: dict[str, list[float]], goals: dict[str, Ratio]) -> Row:
    """Return one row of the results."""
    shown = "  ".join(
        f"{name} {r.median:.2f} ({r.low:.2f}-{r.high:.2f}){'' if r.goal is None else f' goal {r.goal:g}'}"
        for name, r in goals.items()
    )
    median = statistics.median(seconds["ours"]) * 1e3
    print(f"{op:18} n={n:<11,} d={density:<6g} {median:9.3f} ms  {shown}", flush=True)
    return {
        "op": op,
        "n": n,
        "density": density,
        "milliseconds": {name: round(statistics.median(t) * 1e3, 4) for name, t in seconds.items()},
        "repeats": len(seconds["ours"]),
        "times_as_fast_as": {name: asdict(r) for name, r in goals.items()},
    }


def measure(n: int, density: float, seconds: float) -> list[Row]:
    """Measure all rows of one size and density on heavy-tailed noise."""
    torch.manual_seed(0)
    grad_N = torch.randn(n) * torch.randn(n).exp()
    residual_N = torch.zeros(n)
    k = max(1, int(n * density))
    threshold = float(grad_N.abs().kthvalue(n - k + 1).values)
    bins = torch.zeros(ops.NUM_BINS, dtype=torch.int32)

    def bound() -> Tensor:
        return residual_N.add_(grad_N)

    rows = []
    times = turns(
        {
            "bound": bound,
            "ours": lambda: ops.take_above(grad_N, residual_N, threshold),
            "with histogram": lambda: ops.take_above(grad_N, residual_N, threshold, bins=bins),
            "torch path": lambda: reference.take_above(
                residual_N, grad_N, threshold, clear=False, bins=None, every=1
            ),
        },
        residual_N.zero_,
        seconds,
    )
    large = n >= 1_000_000
    goals = {
        "bound": ratio(times["ours"], times["bound"], SELECT if large else None),
        "torch path": ratio(times["ours"], times["torch path"], SELECT_OVER_TORCH if large else None),
        "with histogram": ratio(times["ours"], times["with histogram"], None),
    }
    rows.append(row("select", n, density, times, goals))

    times = turns(
        {
            "bound": bound,
            "ours": lambda: ops.take_top(grad_N, residual_N, [0, n], [k]),
            "torch path": lambda: reference.take_top(residual_N, grad_N, [0, n], [k], clear=False),
        },
        residual_N.zero_,
        seconds,
    )
    goals = {
        "bound": ratio(times["ours"], times["bound"], TOP[density] if large else None),
        "torch path": ratio(times["ours"], times["torch path"], top_over_torch(n)),
    }
    rows.append(row("top", n, density, times, goals))

    at_M = torch.cat([torch.randperm(n)[:k].sort().values.int() for _ in range(RANKS)])
    values_M = torch.randn(at_M.numel())
    times = turns(
        {
            "ours": lambda: ops.scatter_mean(values_M, at_M, [k] * RANKS, residual_N),
            "torch path": lambda: residual_N.zero_().index_add_(0, at_M, values_M),
            "only cleared": lambda: ops.scatter_mean(
                values_M, at_M, [k] * RANKS, ops.clear(residual_N, at_M), zeroed=True
            ),
        },
        lambda: None,
        seconds,
    )
    goals = {
        "torch path": ratio(
            times["ours"], times["torch path"], SCATTER_OVER_TORCH if density >= 0.01 and large else None
        ),
        "only cleared": ratio(times["ours"], times["only cleared"], None),
    }
    rows.append(row(f"scatter_mean, W={RANKS}", n, density, times, goals))
    return rows


def steered(n: int, density: float, seconds: float) -> Row:
    """Measure SAGE's controller against a selection with a fixed threshold, under error feedback."""
    torch.manual_seed(0)
    gradients = [torch.randn(n) * torch.randn(n).exp() for _ in range(3)]
    controller, start_N = Quantile(), torch.zeros(n)
    for step in range(30):
        controller.take(gradients[step % 3], start_N, density)
    residual_N, run = torch.empty(n), 0

    def prepare() -> None:
        nonlocal run
        residual_N.copy_(start_N)
        run += 1

    times = turns(
        {
            "ours": lambda: controller.take(gradients[run // 3 % 3], residual_N, density),
            "plain select": lambda: ops.take_above(
                gradients[run // 3 % 3], residual_N, float(controller.threshold)
            ),
            "first step": lambda: Quantile().take(gradients[run // 3 % 3], residual_N, density),
        },
        prepare,
        seconds,
    )
    goals = {
        "plain select": ratio(times["ours"], times["plain select"], STEERED),
        "first step": ratio(times["ours"], times["first step"], None),
    }
    return row("quantile", n, density, times, goals)


def processor() -> str:
    """Return the processor's model name and the number of processors."""
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    names = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")]
    return f"{len(names)} x {names[0]}" if names else platform.machine()


def main() -> int:
    """Measure every size and density."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--seconds", type=float, default=4.0, help="time for each comparison")
    parser.add_argument("--check", action="store_true", help="fail if a figure is below half of its goal")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    if native.MISSING is not None:
        print(f"no native extension ({native.MISSING}): there is nothing to measure", file=sys.stderr)
        return 2
    torch.set_num_threads(1)
    load_before = os.getloadavg()[0]
    rows = [
        row
        for n in arguments.sizes
        for density in DENSITIES
        for row in measure(n, density, arguments.seconds)
    ]
    steerable = [n for n in arguments.sizes if n in STEERED_SIZES]
    rows += [steered(n, density, arguments.seconds) for n in steerable for density in DENSITIES]
    labels = [f"{row['op']} n={row['n']} d={row['density']}" for row in rows]
    conclude(rows, load_before, arguments.output)
    return judge(rows, labels, halved=arguments.check)


def conclude(rows: list[Row], load_before: float, output: Path) -> None:
    """Write the rows to a file, with the command, the commit, the machine and its load."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    report = {
        "command": " ".join([f"python benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "commit": commit.stdout.strip(),
        "machine": {"processor": processor(), "torch": torch.__version__, "threads": 1},
        "load": {"before": load_before, "after": os.getloadavg()[0]},
        "rows": rows,
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(report, indent=1) + "\n")


def judge(rows: list[Row], labels: list[str], *, halved: bool) -> int:
    """Print the figures below their goals, or below half of them; return the exit status.

    The status is 1 if `halved` is set and a figure is below half of its goal, else 0.
    """
    missed = [
        f"{label}: {against} {figure['median']} of {figure['goal']}"
        for row, label in zip(rows, labels, strict=True)
        for against, figure in row["times_as_fast_as"].items()
        if figure["goal"] is not None and figure["median"] < figure["goal"] / (2 if halved else 1)
    ]
    title = "below half of the goal:" if halved else "below the goal:"
    print("\n".join([title, *missed]) if missed else "all goals are met")
    return 1 if missed and halved else 0


if __name__ == "__main__":
    sys.exit(main())
