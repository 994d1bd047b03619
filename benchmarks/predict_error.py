"""Measures the error of `sage predict`: predicted step times against measured ones, leaving one setup out.

A setup is a number of ranks and a link speed. For each setup the script starts a SLURM cluster on this
machine (tests/slurm/cluster.py) with one rank per node, whose links have this speed in each direction. There
it runs `sage calibrate`, and trains with every method under both mounts. Each setup is then predicted from
the calibrations of the others, never from its own. All rows are printed, with their errors.

The ranks share the cores of this machine, so that computation takes longer with more ranks. Computation
is therefore taken from a setup with the same number of ranks; links may be from a setup with another number.
At the same link speed, the measured links are used; otherwise the bandwidth is the nominal speed.

The script needs root, slurm-wlm and munge.

    python benchmarks/predict_error.py --workloads digits lstm-topics > benchmarks/results/predict_error.json
"""

import argparse
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from sage.bench.repetitions import parsed
from sage.predict.calibration import Calibration, read, write

CHECKOUT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(CHECKOUT / "tests"))

from prediction_errors import Row, Setup, Source, sources, summary  # noqa: E402
from slurm.cluster import Cluster  # noqa: E402

METHODS = (
    "exact",
    "bf16",
    "topk:density=0.01",
    "sage:density=0.01",
    "randomk:density=0.01,draw=shared",
    "powersgd",
    "onebit",
    "int8",
    "dgc:density=0.01",
)
WARM_UP = {"sage": 6}
"""Warm-up steps of each job, by default 2; a controller first has to converge to its density."""
PROGRAM = (sys.executable, "-m", "sage")


# Measurements.


def calibrate(
    cluster: Cluster, folder: Path, workload: Sequence[str], given: argparse.Namespace
) -> Calibration:
    """Calibrate on all nodes of a cluster."""
    path = folder / "calibration.json"
    command = [*PROGRAM, "calibrate", *workload, "--reducers", *given.methods, "--output", str(path)]
    options = ["--seconds", str(given.seconds), "--steps", str(given.steps), "--timeout", "600"]
    nodes = f"--nodes={len(cluster.nodes)}"
    environment = {"PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1"}
    cluster.run("salloc", nodes, "srun", *command, *options, cwd=folder, env=environment, timeout=3600)
    return read(path)


def train(
    cluster: Cluster, folder: Path, workload: Sequence[str], method: str, mount: str, steps: int
) -> dict[str, Any]:
    """Train some steps; return the run's reducer, its options, and the seconds of the steps on rank 0."""
    reducer, options = parsed(method)
    warm_up = WARM_UP.get(reducer, 2)
    flags = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    job = cluster.sbatch(
        f"--nodes={len(cluster.nodes)}",
        f"--output={folder}/out",
        str(CHECKOUT / "pararun"),
        *workload,
        *("--reducer", reducer, *flags, "--mount", mount, "--steps", str(warm_up + steps)),
        # No evaluation falls into the measured steps.
        *("--runs", str(folder), "--eval-every", "1000", "--timeout", "600"),
        env={"SAGE_HOME": str(CHECKOUT)},
        cwd=folder,
    )
    ended = cluster.wait(job, 3600)
    assert ended["JobState"] == "COMPLETED", (folder / "out").read_text()
    (run,) = [path for path in folder.iterdir() if (path / "result.json").exists()]
    lines = (run / "metrics.jsonl").read_text().splitlines()
    records = [record for record in map(json.loads, lines) if record["kind"] == "step"]
    result = json.loads((run / "result.json").read_text())
    return {
        "reducer": result["reducer"],
        "options": result["reducer_options"],
        "mount": mount,
        "seconds": [record["seconds"] for record in records[warm_up:]],
    }


def measure(
    setup: Setup, workload: Sequence[str], given: argparse.Namespace
) -> tuple[Calibration, list[dict[str, Any]]]:
    """Calibrate and train in one setup; the methods take turns in each round."""
    runs: dict[tuple[str, str], dict[str, Any]] = {}
    with (
        tempfile.TemporaryDirectory(prefix="error-") as name,
        Cluster(Path(name) / "cluster", nodes=setup.ranks, rate=setup.rate) as cluster,
    ):
        calibration = calibrate(cluster, Path(name), workload, given)
        print(setup, "calibrated", file=sys.stderr, flush=True)
        for turn in range(given.rounds):
            for mount in given.mounts:
                for number, method in enumerate(given.methods):
                    folder = Path(name) / f"{turn}-{mount}-{number}"
                    folder.mkdir()
                    values = train(cluster, folder, workload, method, mount, given.steps)
                    print(setup, method, mount, values["seconds"], file=sys.stderr, flush=True)
                    runs.setdefault((method, mount), {**values, "seconds": []})["seconds"] += values[
                        "seconds"
                    ]
    return calibration, list(runs.values())


# Predictions.


def predicted(
    source: Source, setup: Setup, calibrations: Mapping[Setup, Calibration]
) -> list[dict[str, Any]]:
    """Predict one setup by `sage predict`."""
    links, computation = calibrations[source.links], calibrations[source.computation]
    bandwidth = () if source.links.rate == setup.rate else ("--bandwidth", str(setup.bits_per_second))
    with tempfile.TemporaryDirectory(prefix="error-") as name:
        path = Path(name) / "calibration.json"
        write(path, replace(computation, links=links.links))
        command = [*PROGRAM, "predict", str(path), "--world-size", str(setup.ranks), *bandwidth, "--json"]
        environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return list(json.loads(done.stdout)["rows"])


def rows_of(
    workload: str,
    measured: Mapping[Setup, tuple[Calibration, Sequence[Mapping[str, Any]]]],
) -> Iterator[Row]:
    """Yield every prediction of every measured step time."""
    calibrations = {setup: calibration for setup, (calibration, _) in measured.items()}
    for setup, (_, runs) in measured.items():
        for source in sources(setup, list(measured)):
            predictions = predicted(source, setup, calibrations)
            for run in runs:
                named = [
                    prediction
                    for prediction in predictions
                    if all(prediction[key] == run[key] for key in ("reducer", "options", "mount"))
                ]
                (row,) = named
                low, middle, high = statistics.quantiles(run["seconds"], n=4, method="inclusive")
                yield Row(
                    workload=workload,
                    setup=setup,
                    source=source,
                    reducer=run["reducer"],
                    options=run["options"],
                    mount=run["mount"],
                    predicted_seconds=row["seconds"],
                    band=(row["seconds_low"], row["seconds_high"]),
                    measured_seconds=middle,
                    measured_quartiles=(low, high),
                )


def main() -> None:
    """Measure all setups and print the results as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--workloads", nargs="+", default=["digits"], help="each with options, quoted")
    parser.add_argument("--rates", nargs="+", default=["10mbit", "100mbit", "1gbit"])
    parser.add_argument("--world-sizes", nargs="+", type=int, default=[2, 4])
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--mounts", nargs="+", default=["whole", "ddp"])
    parser.add_argument("--steps", type=int, default=6, help="steps of a round, in addition to the warm-up")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=60, help="of `sage calibrate`")
    given = parser.parse_args()
    setups = [Setup(ranks, rate) for ranks in given.world_sizes for rate in given.rates]
    rows: list[Row] = []
    load = os.getloadavg()[0]
    for workload in given.workloads:
        measured = {setup: measure(setup, shlex.split(workload), given) for setup in setups}
        rows += rows_of(workload, measured)
    methods = dict.fromkeys((row.reducer, row.mount) for row in rows)
    result = {
        "all": summary(rows),
        "by_method": {
            f"{reducer} × {mount}": summary(
                [row for row in rows if (row.reducer, row.mount) == (reducer, mount)]
            )
            for reducer, mount in methods
        },
        "steps_a_round": given.steps,
        "rounds": given.rounds,
        "load_average": {"before": round(load, 2), "after": round(os.getloadavg()[0], 2)},
        "machine": f"{os.cpu_count()} cores for all ranks, {platform.machine()}, torch {torch.__version__}",
        "rows": [{**asdict(row), "error": round(row.error, 4)} for row in rows],
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
