"""Measures at which link speeds compression reduces step time: whole steps on nodes with throttled links.

For each rate, the script starts a SLURM cluster of four nodes on this machine (tests/slurm/cluster.py). Every
node has its own network namespace and a link with that rate in each direction. `sbatch pararun` trains there
with one rank per node, with one reducer after the other, for several rounds. Results are the slowest rank's
step times without warm-up. The script needs root, slurm-wlm and munge.

    python benchmarks/slow_links.py --rates 100mbit 1gbit none > benchmarks/results/slow_links.json
"""

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

CHECKOUT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(CHECKOUT / "tests"))

from slurm.cluster import Cluster  # noqa: E402

BASELINE = "exact"
WARM_UP = {"sage": 5}
"""Warm-up steps of each job, by default 2; a controller first has to converge to its density."""


def measure(cluster: Cluster, folder: Path, given: argparse.Namespace, reducer: str) -> dict[str, Any]:
    """Train for a few steps with one reducer, and return values from the run's records."""
    density = () if reducer in ("exact", "bf16") else ("--density", str(given.density))
    warm_up = WARM_UP.get(reducer, 2)
    job = cluster.sbatch(
        "--nodes=4",
        f"--output={folder}/out",
        str(CHECKOUT / "pararun"),
        *given.workload,
        *("--reducer", reducer, *density, "--steps", str(warm_up + given.steps), "--runs", str(folder)),
        # No evaluation falls into the measured steps.
        *("--eval-every", "1000", "--data.limit-test", "64", "--timeout", "600"),
        env={"SAGE_HOME": str(CHECKOUT)},
        cwd=folder,
    )
    ended = cluster.wait(job, 1800)
    assert ended["JobState"] == "COMPLETED", (folder / "out").read_text()
    (run,) = [path for path in folder.iterdir() if (path / "result.json").exists()]
    lines = (run / "metrics.jsonl").read_text().splitlines()
    steps = [record for record in map(json.loads, lines) if record["kind"] == "step"][warm_up:]
    return {
        "seconds": [record["seconds"] for record in steps],
        "wire_sent": statistics.mean(record["wire_sent"] for record in steps),
        "density_had": statistics.mean(record["density_had"] for record in steps),
        "links": json.loads((run / "manifest.json").read_text())["links"],
        "parameters": json.loads((run / "result.json").read_text())["parameters"],
    }


def at_rate(rate: str | None, given: argparse.Namespace) -> dict[str, Any]:
    """Measure all reducers in turn on links of one rate."""
    values: dict[str, list[dict[str, Any]]] = {reducer: [] for reducer in given.reducers}
    with (
        tempfile.TemporaryDirectory(prefix="links-") as folder,
        Cluster(Path(folder) / "cluster", rate=rate) as cluster,
    ):
        for turn in range(given.rounds):
            for reducer in given.reducers:
                runs = Path(folder) / f"{turn}-{reducer}"
                runs.mkdir()
                values[reducer].append(measure(cluster, runs, given, reducer))
                print(rate, turn, reducer, values[reducer][-1], file=sys.stderr, flush=True)
    base = [statistics.median(run["seconds"]) for run in values[BASELINE]]
    links = [run["links"] for runs in values.values() for run in runs]
    rows = {}
    for reducer, runs in values.items():
        medians = [statistics.median(run["seconds"]) for run in runs]
        ratios = sorted(exact / median for exact, median in zip(base, medians, strict=True))
        rows[reducer] = {
            "step_seconds": round(statistics.median(medians), 4),
            "step_seconds_by_round": [round(median, 4) for median in medians],
            "times_faster_than_exact": round(statistics.median(ratios), 3),
            "lowest_and_highest": [round(ratios[0], 3), round(ratios[-1], 3)],
            "sent_bytes_a_step": round(statistics.mean(run["wire_sent"] for run in runs)),
            "density_had": round(statistics.mean(run["density_had"] for run in runs), 5),
        }
    return {
        "rate": rate,
        "parameters": values[BASELINE][0]["parameters"],
        "probe_mbit_per_second": round(statistics.median(link["bits_per_second"] for link in links) / 1e6, 1),
        "probe_alpha_ms": round(1e3 * statistics.median(link["alpha_seconds"] for link in links), 3),
        "reducers": rows,
    }


def main() -> None:
    """Measure every rate and print the results as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument(
        "--rates", nargs="+", default=["100mbit", "1gbit", "none"], help="none: not throttled"
    )
    parser.add_argument("--reducers", nargs="+", default=["exact", "bf16", "topk", "sage"])
    parser.add_argument("--density", type=float, default=0.01)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=6, help="steps of a round, in addition to the warm-up")
    parser.add_argument("--workload", nargs="+", default=["resnet18-cifar10", "--batch-size", "8"])
    given = parser.parse_args()
    rates = [None if rate == "none" else rate for rate in given.rates]
    result = {
        "workload": " ".join(given.workload),
        "density": given.density,
        "nodes": 4,
        "rounds": given.rounds,
        "steps_a_round": given.steps,
        "warm_up_steps": {reducer: WARM_UP.get(reducer, 2) for reducer in given.reducers},
        "at": [at_rate(rate, given) for rate in rates],
        "machine": f"{os.cpu_count()} cores for the 4 ranks, {platform.machine()}, torch {torch.__version__}",
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
