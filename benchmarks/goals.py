"""Measures every reducer against its goals: compress, decode, memory, GRACE's class, whole steps.

    python benchmarks/goals.py                                # measure all; writes results/goals.{json,md}
    python benchmarks/goals.py --reducers onebit qsgd --steps none --output /tmp/mine
    python benchmarks/goals.py --check --output /tmp/x        # fail if a figure is below half of its goal

goal_table.py has the goals, goal_measure.py the measurement of a reducer, and reduce_step.py that of whole
steps over gloo. The first vector has the layers of ResNet-18 (11,173,962 parameters), the second has as many
elements in one matrix; both are N(0, 1). There is one thread. Compress and decode are ratios to
`torch.Tensor.add_` on the same vectors, interleaved: medians and quartiles over the repeats. The time of
decoding W payloads is fitted as t_d0 + W·t_d1. Int8 and fp8 reduce 1/W of the vector on each rank: their
compress is measured at the largest W, and that of the others at W = 1. Temporary memory is the growth of the
process's resident memory (`peak_bytes`). GRACE's class is compared on layers only, as it compresses layer by
layer.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import reduce_step
import torch
from goal_measure import Measured, matrix, measure, resnet18
from goal_table import REDUCERS, STEPS, What, goal_of
from kernels import processor

from sage.ops import native
from sage.predict.decode_fit import fitted
from sage.reduction.layout import Layout

RESULTS = Path(__file__).parent / "results" / "goals"
TWO_WAY = ("int8", "fp8")
SLOW = ("svd", "atomo")
"""Not measured on one matrix: the SVD of 10,912 × 1,024 elements takes many seconds."""


@dataclass(frozen=True)
class Figure:
    """One measured ratio and its limit."""

    input: str
    reducer: str
    what: str
    median: float
    low: float
    high: float
    limit: float | None
    is_floor: bool

    def is_missed(self, slack: float = 1.0) -> bool:
        """Return whether the ratio is worse than its limit by more than the factor `slack`."""
        if self.limit is None:
            return False
        return self.median < self.limit / slack if self.is_floor else self.median > self.limit * slack


def figures(name: str, measured: Measured, world_sizes: Sequence[int], factor: float) -> list[Figure]:
    """Return the ratios of one reducer on one input."""
    spec, rows = measured.spec, []

    def add(what: What, label: str, quartiles: tuple[float, float, float], world_size: int = 1) -> None:
        goal = goal_of(what, spec)
        limit = None if goal is None else round(goal.at(world_size, factor), 3)
        low, median, high = (round(value, 3) for value in quartiles)
        rows.append(Figure(name, spec, label, median, low, high, limit, bool(goal and goal.is_floor)))

    compress = f"compress W={max(world_sizes) if spec in TWO_WAY else min(world_sizes)}"
    add("compress", "compress", measured.over(compress, "add_"))
    for world_size in world_sizes:
        add("decode", f"decode W={world_size}", measured.over(f"decode W={world_size}", "add_"), world_size)
    if "grace" in measured.seconds:
        add("grace", "GRACE's class", measured.over("grace", compress))
    if "cast" in measured.seconds:
        add("cast", "cast", measured.over(compress, "cast"))
    for what, value in (("memory", measured.memory), ("products", measured.products)):
        if value is not None:
            add("memory" if what == "memory" else "products", what, (value, value, value))
    return rows


def row(name: str, measured: Measured, world_sizes: Sequence[int], factor: float) -> dict[str, Any]:
    """Print one reducer's figures on one input; return them for the JSON file."""
    ratios = figures(name, measured, world_sizes, factor)
    decode = {w: statistics.median(measured.seconds[f"decode W={w}"]) for w in world_sizes}
    first, per_payload = fitted(decode)
    shown = "  ".join(f"{f.what} {f.median:.2f}{'' if f.limit is None else f'/{f.limit:g}'}" for f in ratios)
    print(f"{name:8} {measured.spec:12} {shown}", flush=True)
    return {
        "input": name,
        "reducer": measured.spec,
        "repeats": len(measured.seconds["add_"]),
        "milliseconds": {k: round(1e3 * statistics.median(v), 4) for k, v in measured.seconds.items()},
        "least_milliseconds": {k: round(1e3 * min(v), 4) for k, v in measured.seconds.items()},
        "decode_milliseconds_first": round(1e3 * first, 4),
        "decode_milliseconds_each": round(1e3 * per_payload, 4),
        "figures": [vars(f) for f in ratios],
    }


def step_figures(rows: Sequence[dict[str, Any]]) -> list[Figure]:
    """Measure whole steps; return their speedups over dense fp32."""
    return [
        Figure(
            f"W={row['world_size']}",
            row["reducer"],
            "whole step",
            against["median"],
            against["low"],
            against["high"],
            against["goal"],
            True,
        )
        for row in rows
        if (against := row["times_as_fast_as"].get("exact")) is not None
    ]


def table(results: Sequence[Figure], head: Sequence[str]) -> str:
    """Return the Markdown table; ✗ marks figures that miss their goal."""
    lines = [
        *head,
        "",
        "| input | reducer | what | ratio, median (quartiles) | goal |",
        "|---|---|---|---:|---:|",
    ]
    for f in results:
        goal = "–" if f.limit is None else f"{'≥' if f.is_floor else '≤'} {f.limit:g}"
        mark = " ✗" if f.is_missed() else ""
        ratio = f"{f.median:.2f} ({f.low:.2f}–{f.high:.2f})"
        lines.append(f"| {f.input} | `{f.reducer}` | {f.what} | {ratio} | {goal}{mark} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Measure, write the table, and compare with the goals."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--reducers", nargs="+", default=REDUCERS, help="names, with options as in topk:values=fp16"
    )
    parser.add_argument("--inputs", nargs="+", default=("layers", "matrix"), choices=("layers", "matrix"))
    parser.add_argument(
        "--world-sizes", type=int, nargs="+", default=(1, 2, 4), help="numbers of payloads to decode"
    )
    parser.add_argument(
        "--steps", nargs="+", default=("2", "4"), help="numbers of ranks for whole steps over gloo, or none"
    )
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--seconds", type=float, default=20.0, help="maximum time for each reducer and input")
    parser.add_argument("--turns", type=int, default=15, help="of whole steps")
    parser.add_argument("--check", action="store_true", help="fail if a figure is below half of its goal")
    parser.add_argument(
        "--output", type=Path, default=RESULTS, help="output path, to which .json and .md are appended"
    )
    arguments = parser.parse_args()
    if native.MISSING is not None:
        print(f"no native extension ({native.MISSING}): there is nothing to measure", file=sys.stderr)
        return 2
    torch.set_num_threads(1)
    capability = torch.backends.cpu.get_cpu_capability()
    factor = 1.0 if capability == "AVX512" else 2.0
    load_before = os.getloadavg()[0]
    print(f"{processor()}, {capability}: goals of passes × {factor:g}; load {load_before:.1f}", flush=True)
    layers = resnet18()
    shapes = {"layers": layers, "matrix": matrix(Layout.of(layers).numel)}
    rows = [
        row(
            name,
            measure(
                spec,
                shapes[name],
                arguments.world_sizes,
                arguments.repeats,
                arguments.seconds,
                grace=name == "layers",
            ),
            arguments.world_sizes,
            factor,
        )
        for spec in arguments.reducers
        for name in arguments.inputs
        if not (name == "matrix" and spec in SLOW)
    ]
    results = [Figure(**f) for row in rows for f in row["figures"]]
    steps: list[dict[str, Any]] = []
    wanted = [name for name in arguments.reducers if name in STEPS]
    if wanted and "none" not in arguments.steps:
        steps = [
            row
            for w in arguments.steps
            for row in reduce_step.rows(int(w), arguments.turns, wanted, plain=False)
        ]
        results += step_figures(steps)
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    report = {
        "command": " ".join(["python benchmarks/goals.py", *sys.argv[1:]]),
        "commit": commit.stdout.strip(),
        "machine": {
            "processor": processor(),
            "capability": capability,
            "torch": torch.__version__,
            "threads": 1,
        },
        "load": {"before": load_before, "after": os.getloadavg()[0]},
        "rows": rows,
        "steps": steps,
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.with_name(arguments.output.name + ".json").write_text(
        json.dumps(report, indent=1) + "\n"
    )
    head = [
        f"`{report['command']}`, commit {report['commit']}; {processor()}, {capability}; one thread; load "
        f"{load_before:.1f} before, {os.getloadavg()[0]:.1f} after."
    ]
    arguments.output.with_name(arguments.output.name + ".md").write_text(table(results, head))
    return judge(results, halved=arguments.check)


def judge(results: Sequence[Figure], *, halved: bool) -> int:
    """Print the figures that miss their goals, or half of them; return 1 if `halved` and there are any."""
    missed = [f for f in results if f.is_missed(2.0 if halved else 1.0)]
    print("below half of the goal:" if halved else "below the goal:") if missed else print(
        "all goals are met"
    )
    for f in missed:
        print(
            f"  {f.input} {f.reducer}: {f.what} {f.median:g}, goal {'≥' if f.is_floor else '≤'} {f.limit:g}"
        )
    return 1 if missed and halved else 0


if __name__ == "__main__":
    sys.exit(main())
