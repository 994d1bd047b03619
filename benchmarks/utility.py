"""Counts the set-ups that pay in the reduced form of the utility study: measured, and predicted.

The set-ups are those of jobs/sweeps/utility-reduced.toml: two small models, two batch sizes, ten methods with
their options, two mounts, two ranks. For each link speed given, the script starts a SLURM cluster on this
machine (allocation.py), and measures there the steps of all methods in turns (cluster_steps.py). A measured
set-up pays if the 95 % interval of its speed-up over the faster dense step that overlaps lies above 1. From
the calibrations, `sage predict` then predicts the set-ups at all six bandwidths of the sweep.

The measurements are kept in a folder. What is in it is not measured again.

    python benchmarks/utility.py --rates 136mbit 542mbit 2711mbit > benchmarks/results/utility.json
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from advise_error import exhaustive
from allocation import CHECKOUT, MACHINE, SAGE, STEPS, allocation

from sage.bench.advise.setups import REFERENCES

WORKLOADS = ("digits", "lstm-topics")
BATCH_SIZES = (8, 32)
BANDWIDTHS = (136e6, 271e6, 542e6, 1083e6, 1356e6, 2711e6)
"""Bits per second, as in the head of the sweep."""

METHODS: Mapping[str, tuple[str, ...]] = {
    "default": (
        *(f"powersgd:rank={rank}" for rank in (4, 8, 16)),
        "signsgd",
        *(f"topk:density={density}" for density in (0.2, 0.1, 0.01)),
        "sage:density=0.01",
    ),
    "layer": tuple(f"mstopk:density={density},bisections=20" for density in (0.001, 0.01, 0.1)),
}
"""Methods by grouping; that of the first is each method's own.

In the sweep PowerSGD begins at step 3; here every measured step is compressed.
"""


def measure(rate: str, folder: Path, given: argparse.Namespace) -> None:
    """Measure what the folder lacks of the set-ups at one link speed."""
    missing = [
        (workload, batch_size, grouping, folder / f"{workload}-{batch_size}-{grouping}-{rate}")
        for workload in WORKLOADS
        for batch_size in BATCH_SIZES
        for grouping in METHODS
    ]
    missing = [each for each in missing if not (each[-1] / "steps.json").exists()]
    if not missing:
        return
    with allocation(2, rate) as run:
        for workload, batch_size, grouping, output in missing:
            groups = () if grouping == "default" else ("--grouping", grouping)
            options = ("--batch-size", str(batch_size), *groups, "--together")
            times = ("--seconds", str(given.seconds), "--steps", "5", "--trial-seconds", str(given.trial))
            methods = ("--reducers", *REFERENCES, *METHODS[grouping])
            run(*STEPS, workload, *options, *times, *methods, "--output", str(output.resolve()))
            print(output.name, "measured", file=sys.stderr, flush=True)


def measured(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield every measured set-up that compresses, with its speed-up."""
    for path in sorted(folder.glob("*/steps.json")):
        steps = json.loads(path.read_text())
        for row in exhaustive(steps["rows"]):
            if row["interval"] is not None:
                where = {"where": path.parent.name, "load_before": steps["load"]}
                yield {**where, **row, "pays": row["interval"][0] > 1}


def predicted(folder: Path, rate: str) -> Iterator[dict[str, Any]]:
    """Yield every predicted set-up that compresses, from the calibrations at one link speed."""
    bandwidths = [str(bandwidth) for bandwidth in BANDWIDTHS]
    for path in sorted(folder.glob(f"*-{rate}/calibration.json")):
        command = [*SAGE, "predict", str(path), "--world-size", "2", "--bandwidth", *bandwidths, "--json"]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=CHECKOUT)
        for row in json.loads(done.stdout)["rows"]:
            if row["reducer"] not in REFERENCES:
                keys = ("reducer", "options", "mount", "bits_per_second", "seconds", "verdict")
                yield {"where": path.parent.name, **{key: row[key] for key in keys}}


def main() -> None:
    """Measure what the folder lacks, and print the counts and all set-ups as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--rates", nargs="+", default=["136mbit", "542mbit", "2711mbit"])
    parser.add_argument("--seconds", type=float, default=10, help="as of `sage calibrate`")
    parser.add_argument("--trial", type=float, default=15, help="seconds for the rounds of a group")
    parser.add_argument("--folder", type=Path, default=CHECKOUT / "build" / "utility")
    given = parser.parse_args()
    for rate in given.rates:
        measure(rate, given.folder, given)
    rows, forecasts = list(measured(given.folder)), list(predicted(given.folder, given.rates[0]))
    pays = sum(row["pays"] for row in rows)
    by_prediction = sum(row["verdict"] == "pays" for row in forecasts)
    result = {
        "measured": f"{pays} of {len(rows)} set-ups pay",
        "measured_by_rate": {
            rate: f"{sum(row['pays'] for row in at)} of {len(at)}"
            for rate in given.rates
            if (at := [row for row in rows if row["where"].endswith(f"-{rate}")])
        },
        "predicted": f"{by_prediction} of {len(forecasts)} set-ups pay",
        "predicted_from": given.rates[0],
        "published": "6 of more than 200 set-ups (Agarwal et al., MLSys 2022)",
        "machine": MACHINE,
        "measured_rows": rows,
        "predicted_rows": forecasts,
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
