"""Measures the cost of comparing the ranks' parameters at evaluations and checkpoints, in whole runs.

    python benchmarks/replicas.py --turns 5 --output results/replicas.json -- digits-ff --reducer exact

Runs with and without the comparison (`--check-replicas 0`) take turns, each as a process with its ranks. The
output has the medians of the training's CPU seconds (all ranks and threads) and wall seconds of both. CPU
seconds of whole runs vary by several percent, so each rank also measures the comparisons themselves, as a
share of its training.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

MEASURED = "SAGE_BENCHMARK_REPLICAS"
"""The file to which each rank of a measured run adds a line."""


def measured_main(argv: list[str]) -> int:
    """Execute `sage run`, with a clock around each comparison and around the training of each rank."""
    from sage.cli.main import main
    from sage.comm.replicas import Comparison, Replicas
    from sage.train.loop import Training

    inside = {"count": 0, "cpu": 0.0, "wall": 0.0}

    def timed(part: Callable[..., Any], count: int) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            wall, cpu = time.perf_counter(), time.thread_time()
            try:
                return part(*args, **options)
            finally:
                inside["cpu"] += time.thread_time() - cpu
                inside["wall"] += time.perf_counter() - wall
                inside["count"] += count

        return call

    run = Training.run

    def whole(training: Training) -> bool:
        wall, cpu = time.perf_counter(), time.process_time()
        result = run(training)
        line = {
            "training": {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall},
            "comparisons": inside,
            "parameters": sum(p.numel() for p in training.model.parameters()),
        }
        with Path(os.environ[MEASURED]).open("a") as file:
            file.write(json.dumps(line) + "\n")
        return result

    setattr(Replicas, "begin", timed(Replicas.begin, 1))  # noqa: B010
    setattr(Comparison, "finish", timed(Comparison.finish, 0))  # noqa: B010
    setattr(Training, "run", whole)  # noqa: B010
    return main(argv)


def turn(argv: list[str], folder: Path) -> list[dict[str, Any]]:
    """Execute one run and return what each rank measured."""
    lines = folder / "lines"
    lines.unlink(missing_ok=True)
    subprocess.run(
        [sys.executable, __file__, "--measured", "run", *argv, "--fresh", "--runs", str(folder / "runs")],
        env={**os.environ, MEASURED: str(lines)},
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    return [json.loads(line) for line in lines.read_text().splitlines()]


def main() -> None:
    """Measure, print, and write the output."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--turns", type=int, default=5, help="runs of each kind")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.add_argument("run", nargs="+", help="arguments of sage run")
    args = parser.parse_args()
    turns: dict[str, list[list[dict[str, Any]]]] = {"with": [], "without": []}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(2 * args.turns):
            # with, without, without, with, ...: an increasing or decreasing load affects both equally
            kind = ("with", "without", "without", "with")[number % 4]
            options = [] if kind == "with" else ["--check-replicas", "0"]
            turns[kind].append(turn([*args.run, *options], Path(folder)))
    ranks = [rank for runs in turns["with"] for rank in runs]
    result: dict[str, Any] = {
        "run": " ".join(args.run),
        "turns": args.turns,
        "parameters": ranks[0]["parameters"],
        "comparisons": ranks[0]["comparisons"]["count"],
        "load": round(os.getloadavg()[0], 1),
    }
    for clock in ("cpu", "wall"):
        for kind, runs in turns.items():
            # CPU seconds add up over the ranks; the wall seconds of a run are those of its slowest rank.
            combine: Callable[[list[float]], float] = sum if clock == "cpu" else max
            seconds = [combine([rank["training"][clock] for rank in ranks_of]) for ranks_of in runs]
            result[f"{clock}_seconds_{kind}"] = round(statistics.median(seconds), 3)
            result[f"{clock}_seconds_{kind}_each"] = [round(value, 3) for value in sorted(seconds)]
        shares = [rank["comparisons"][clock] / rank["training"][clock] for rank in ranks]
        milliseconds = [1000 * rank["comparisons"][clock] / rank["comparisons"]["count"] for rank in ranks]
        result[f"{clock}_share_percent"] = round(100 * statistics.median(shares), 4)
        result[f"{clock}_ms_of_a_comparison"] = round(statistics.median(milliseconds), 3)
    text = json.dumps(result, indent=2)
    print(text)
    if args.output is not None:
        args.output.write_text(text + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measured"]:
        sys.exit(measured_main(sys.argv[2:]))
    main()
