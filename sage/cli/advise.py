"""`sage advise`: measure this cluster, predict, verify, and recommend one set-up for a workload."""

from collections.abc import Sequence
from pathlib import Path

from ..bench.advise import DENSITIES, REDUCERS
from ..config import Config
from .calibrate import Calibrate
from .command import Option

MOST_MINUTES = 60.0

NOTES = """\
    sage advise resnet20-cifar10 --world-size 2                   2 ranks on this machine
    sbatch --nodes=4 pararun --advise resnet20-cifar10            the nodes of a SLURM job
    sage launch --hosts hosts.txt --advise resnet20-cifar10       the hosts of a file

The ranks are found as `sage run` finds them. The reference is the faster of `exact` and `bf16` under
`--mount ddp`. Every other reducer is predicted under each mount; the three fastest are verified against the
reference by short runs in alternation.
"""


def advise(
    *,
    config: Config,
    reducers: Sequence[Config],
    minutes: float,
    steps: int,
    json: bool,
    output: Path | None,
    **_: object,
) -> int:
    """Measure and print the verdict."""
    from ..bench.advise.main import Request, main

    if not 0 < minutes <= MOST_MINUTES:
        raise ValueError(f"--minutes {minutes:g}: expected more than 0 and at most {MOST_MINUTES:g}")
    return main(
        Request(
            config=config,
            reducers=reducers,
            seconds=60 * minutes,
            steps=steps,
            as_json=json,
            output=output,
        )
    )


command = Calibrate(
    "advise",
    advise,
    [
        Option("reducers", tuple[str, ...], REDUCERS, "The reducers, each NAME[:OPTION=VALUE,...]."),
        Option("densities", tuple[float, ...], DENSITIES, "Target densities, for reducers that have one."),
        Option("minutes", float, 5.0, "Time for all measurements together."),
        Option("steps", int, 10, "Least number of timed steps; number of reductions of each reducer."),
        Option("json", bool, False, "Print one JSON object instead of the text."),
        Option("output", Path | None, None, "A file for the calibration, for `sage predict`."),
    ],
    help="Recommend a reducer and a mount for a workload on this cluster. It measures, predicts, and "
    "verifies by short runs.",
    notes=NOTES,
)
