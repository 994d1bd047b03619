"""Measures how long `sage submit` takes to plan a sweep of 2,500 runs before it calls sbatch.

Each turn is a new process. It times the imports (including torch), the expansion of the sweep into validated
and named runs, the search for finished results, and the split into arrays within SLURM's limits. The goal is
less than five seconds in total.

    python benchmarks/plan_sweep.py [--turns 5] [--output FILE]
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SUITE = f"""
workload = "digits-ff"
reducer = ["topk", "gtopk", "sage", "threshold", "accordion"]
seed = {list(range(10))}
lr = {[step / 10 for step in range(1, 11)]}
world_size = 4
""" + "".join(
    f"[reducers.{reducer}]\ndensity = [0.5, 0.1, 0.05, 0.01, 0.005]\n"
    for reducer in ("topk", "gtopk", "sage", "threshold", "accordion")
)
MAX_ARRAY = 1001
"""SLURM's default for MaxArraySize."""


def plan(path: Path) -> dict[str, float]:
    """Plan the sweep once and return the seconds of each part."""
    times: dict[str, float] = {}
    started = time.perf_counter()

    def lap(name: str) -> None:
        times[name] = time.perf_counter() - started - sum(times.values())

    import torch  # noqa: F401

    from sage.jobs.arrays import plan as arrays
    from sage.jobs.sweep import note, read

    lap("import")
    sweep = read(path, path.parent / "runs")
    lap("expand")
    note(sweep)
    missing = [config for config in sweep.configs if not (config.folder / "result.json").exists()]
    planned = arrays(sweep, missing, path.parent / "jobs", MAX_ARRAY)
    lap("plan")
    assert [len(array.configs) for array in planned] == [1001, 1001, 498]
    return {**times, "all": sum(times.values()), "all, processor time": time.process_time()}


def main() -> None:
    """Run all turns and print or write their medians."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--once", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.once:
        print(json.dumps(plan(given.once)))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sweep.toml"
        path.write_text(SUITE)
        command = [sys.executable, __file__, "--once", str(path)]
        turns = [
            json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            for _ in range(given.turns)
        ]
    record = {
        "cells": 2500,
        "turns": given.turns,
        "seconds": {
            name: {
                "median": round(statistics.median(turn[name] for turn in turns), 2),
                "least": round(min(turn[name] for turn in turns), 2),
                "most": round(max(turn[name] for turn in turns), 2),
            }
            for name in turns[0]
        },
        "load_average": round(os.getloadavg()[0], 1),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
    }
    text = json.dumps(record, indent=2) + "\n"
    print(text, end="")
    if given.output:
        given.output.write_text(text)


if __name__ == "__main__":
    main()
