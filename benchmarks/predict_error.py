"""Measures the error of `sage predict`: predicted step times against measured ones, leaving one setup out.

A setup is a number of ranks and a link speed. For each setup the script starts a SLURM cluster on this
machine (tests/slurm/cluster.py) with one rank per node, whose links have this speed in each direction. There
`cluster_steps.py` calibrates, and measures the steps of every method under each mount in turns. Each setup is
then predicted from the calibrations of the others, never from its own. All rows are written, with their
errors.

The ranks share the cores of this machine, so that computation takes longer with more ranks. Computation
is therefore taken from a setup with the same number of ranks; links may be from a setup with another number,
and messages then have its latencies, although ranks that share a core also delay each other's messages.
At the same link speed, the measured links are used; otherwise bandwidth and burst are those given to tc, of
which headers take a share.

The measurements of each setup are kept in a folder. A setup that is in it is not measured again, and all
that are in it are predicted. The script needs root, slurm-wlm and munge.

    python benchmarks/predict_error.py --workloads "resnet20-cifar10 --batch-size 32" lstm-topics
"""

import argparse
import csv
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from allocation import CHECKOUT, MACHINE, SAGE, STEPS, allocation, burst_bytes, folder_name
from prediction_errors import Row, Setup, Source, sources, summary

from sage.predict.calibration import Calibration, read, write

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

LINKS = {True: "measured with as many ranks", False: "measured with another number of ranks"}


# Measurements.


@dataclass(frozen=True)
class Measured:
    """The measurements of a workload in a setup."""

    workload: str
    setup: Setup
    calibration: Calibration
    rows: Sequence[Mapping[str, Any]]
    """For each reducer and mount: `reducer`, `options`, `mount` and `seconds`, one for each round."""
    load: float | None
    """The machine's load average before the measurement, if it was recorded."""

    @classmethod
    def of(cls, folder: Path) -> "Measured":
        """Return the measurements in a folder."""
        described = json.loads((folder / "setup.json").read_text())
        steps = json.loads((folder / "steps.json").read_text())
        setup = Setup(described["ranks"], described["rate"])
        return cls(
            described["workload"], setup, read(folder / "calibration.json"), steps["rows"], steps.get("load")
        )


def measure(workload: str, setup: Setup, folder: Path, given: argparse.Namespace) -> None:
    """Calibrate and measure all steps in one setup, and write the measurements to the folder."""
    options = ["--seconds", str(given.seconds), "--steps", str(given.steps), "--mounts", *given.mounts]
    options += ["--reducers", *given.methods, "--timeout", "600", "--output", str(folder.resolve())]
    with allocation(setup.ranks, setup.rate) as run:
        run(*STEPS, *shlex.split(workload), *options)
    described = {"workload": workload, "ranks": setup.ranks, "rate": setup.rate}
    (folder / "setup.json").write_text(json.dumps(described))


# Predictions.


def predicted(
    source: Source, setup: Setup, calibrations: Mapping[Setup, Calibration]
) -> list[dict[str, Any]]:
    """Predict one setup by `sage predict`."""
    links, computation = calibrations[source.links], calibrations[source.computation]
    given = "--bandwidth", str(setup.bits_per_second), "--burst", str(burst_bytes(setup.rate))
    link = () if source.links.rate == setup.rate else given
    with tempfile.TemporaryDirectory(prefix="error-") as name:
        path = Path(name) / "calibration.json"
        write(path, replace(computation, links=links.links))
        command = [*SAGE, "predict", str(path), "--world-size", str(setup.ranks), *link, "--json"]
        environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return list(json.loads(done.stdout)["rows"])


def rows_of(measured: Sequence[Measured]) -> Iterator[Row]:
    """Yield every prediction of every measured step time of one workload."""
    calibrations = {each.setup: each.calibration for each in measured}
    for each in measured:
        for source in sources(each.setup, list(calibrations)):
            predictions = predicted(source, each.setup, calibrations)
            for run in each.rows:
                (row,) = [
                    prediction
                    for prediction in predictions
                    if all(prediction[key] == run[key] for key in ("reducer", "options", "mount"))
                ]
                low, middle, high = statistics.quantiles(run["seconds"], n=4, method="inclusive")
                yield Row(
                    workload=each.workload,
                    setup=each.setup,
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
    """Measure the setups that the folder lacks, and print the errors of all that it has as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--workloads", nargs="*", default=["digits"], help="each with options, quoted")
    parser.add_argument("--rates", nargs="+", default=["10mbit", "100mbit", "1gbit"])
    parser.add_argument("--world-sizes", nargs="+", type=int, default=[2, 4])
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--mounts", nargs="+", default=["whole", "ddp"])
    parser.add_argument("--steps", type=int, default=10, help="as of `sage calibrate`")
    parser.add_argument("--seconds", type=float, default=40, help="as of `sage calibrate`")
    parser.add_argument("--folder", type=Path, default=CHECKOUT / "build" / "predict_error")
    parser.add_argument("--output", type=Path, help="two files, .json and .csv")
    given = parser.parse_args()
    for workload in given.workloads:
        for setup in (Setup(ranks, rate) for ranks in given.world_sizes for rate in given.rates):
            folder = given.folder / folder_name(workload, setup.ranks, setup.rate)
            if not (folder / "setup.json").exists():
                measure(workload, setup, folder, given)
                print(folder.name, "measured", file=sys.stderr, flush=True)
    found = [Measured.of(path.parent) for path in sorted(given.folder.glob("*/setup.json"))]
    rows = [
        row
        for workload in dict.fromkeys(each.workload for each in found)
        for row in rows_of([each for each in found if each.workload == workload])
    ]
    if not rows:
        parser.exit(message="nothing is predicted: a workload needs two setups with as many ranks\n")
    result = {
        "all": summary(rows),
        **by("workload", rows, lambda row: row.workload),
        **by("setup", rows, lambda row: f"{row.setup.ranks} ranks, {row.setup.rate}"),
        **by("method", rows, lambda row: f"{row.reducer} × {row.mount}"),
        **by("links", rows, lambda row: LINKS[row.source.links.ranks == row.setup.ranks]),
        "largest_load_before": max((each.load for each in found if each.load is not None), default=None),
        "machine": MACHINE,
    }
    print(json.dumps(result, indent=2))
    if given.output is not None:
        given.output.with_suffix(".json").write_text(json.dumps(result, indent=2) + "\n")
        with given.output.with_suffix(".csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(flat(rows[0])), lineterminator="\n")
            writer.writeheader()
            writer.writerows(map(flat, rows))


def flat(row: Row) -> dict[str, Any]:
    """Return one prediction as a line of a table; times in milliseconds."""
    quartiles, band = row.measured_quartiles, row.band
    return {
        "workload": row.workload,
        "ranks": row.setup.ranks,
        "rate": row.setup.rate,
        "links_of": f"{row.source.links.ranks} ranks, {row.source.links.rate}",
        "reducer": row.reducer,
        "mount": row.mount,
        "predicted": round(1e3 * row.predicted_seconds, 2),
        "predicted_low": round(1e3 * band[0], 2),
        "predicted_high": round(1e3 * band[1], 2),
        "measured": round(1e3 * row.measured_seconds, 2),
        "measured_first_quartile": round(1e3 * quartiles[0], 2),
        "measured_third_quartile": round(1e3 * quartiles[1], 2),
        "error": round(row.error, 4),
    }


def by(name: str, rows: Sequence[Row], value: Callable[[Row], str]) -> dict[str, Any]:
    """Return the summary of the rows by a value of theirs."""
    values = dict.fromkeys(map(value, rows))
    return {f"by_{name}": {each: summary([row for row in rows if value(row) == each]) for each in values}}


if __name__ == "__main__":
    main()
