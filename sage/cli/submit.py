"""`sage submit`: run the missing runs of a sweep as SLURM jobs, or on this machine."""

from pathlib import Path
from typing import Any, Literal

from .command import Argument, Command, Option
from .folders import RunsFolder

Cluster = Literal["slurm", "local", "debug"]


def submit(*, sweep: Path, watch: bool, **options: Any) -> int:
    """Submit the sweep."""
    from ..jobs.submit import main

    return main(sweep, watching=watch, **options)


command = Command(
    "submit",
    submit,
    [
        Argument("sweep", Path, "A TOML file with a run's keys, whose lists are expanded into runs."),
        Option(
            "cluster",
            Cluster | None,
            None,
            "slurm: SLURM jobs, the default where there is sbatch; local: processes on this machine, until "
            "all are done; debug: this process, one run after another.",
        ),
        Option(
            "runs", RunsFolder | None, None, "The runs folder, or its URL; default: the sweep's, else runs."
        ),
        Option("parallel", int | None, None, "Maximum number of runs at a time; default: the sweep's."),
        Option(
            "max_requeues",
            int | None,
            None,
            "How often a failed run is started again; default: the sweep's, else 3.",
        ),
        Option(
            "max_cells",
            int | None,
            None,
            "Maximum number of its runs; default: the sweep's, else 10,000.",
        ),
        Option("dry_run", bool, False, "Print the runs and the batch scripts, and submit nothing."),
        Option("watch", bool, False, "Show the states of the runs until all have ended."),
        Option("pilot", bool, False, "Submit the pilot runs that [pilot] describes, instead of the others."),
    ],
    help="Submit a sweep: run those of its runs that are neither finished nor active.",
)
