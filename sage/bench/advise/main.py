"""`sage advise`: which set-up to run here, from measurements of at most five minutes."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from sage import storage
from sage.bench.advise import trials, verdict
from sage.bench.advise.setups import REFERENCES, Setup, candidates
from sage.bench.advise.text import text
from sage.bench.calibrate import ranks
from sage.bench.calibrate.measurement import measure, training_of
from sage.bench.calibrate.plan import Plan, unlimited
from sage.bench.calibrate.scopes import nodes_of
from sage.comm.process import ProcessWire
from sage.config import Config
from sage.exit_status import FAILED
from sage.predict import grid
from sage.predict.calibration import Calibration, write
from sage.predict.closed_forms import Intervals
from sage.predict.limits import limits
from sage.predict.step_time import DENSE, Predictor
from sage.predict.step_time import Setup as Cluster
from sage.records.progress import Display

NAME = "sage advise"

VERIFICATION = 0.4
"""Share of the time for the short runs; the collectives and the reducers have the rest."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to measure, for how long, and what to write.

    Raises:
        ValueError: the reducers lack a reference, or a number is out of its range.
    """

    config: Config
    """The model, the data and the settings of a step."""
    reducers: Sequence[Config]
    """The same configuration with each of the reducers."""
    seconds: float
    """The time for everything but starting the processes and building the models."""
    steps: int
    """Number of steps that are timed, and of reductions of each reducer."""
    output: Path | None
    """The file for the calibration; None: it is not written."""
    as_json: bool
    """Whether to print one JSON object in place of the text."""

    def __post_init__(self) -> None:
        names = {each.reducer for each in self.reducers}
        if not names & set(REFERENCES):
            raise ValueError(f"--reducers has no reference: add {' or '.join(REFERENCES)}")
        if not names - set(REFERENCES):
            raise ValueError("--reducers has no method that compresses: add one, such as topk")

    @property
    def plan(self) -> Plan:
        """What the calibration measures: collectives, and as long again for the reducers."""
        return Plan(
            config=self.config,
            reducers=self.reducers,
            seconds=(1 - VERIFICATION) / 2 * self.seconds,
            steps=self.steps,
        )


def main(request: Request) -> int:
    """Measure, predict, verify and print the verdict; returns the exit status, as `sage calibrate` does.

    Raises:
        ValueError: the configuration or the environment is invalid.
    """
    plan = request.plan
    return ranks.run(NAME, plan.config, plan.facts(), partial(_work, request))


def _work(request: Request, wire: ProcessWire, device: torch.device) -> int:
    if wire.world_size == 1:
        raise ValueError("world_size is 1; there is nothing to compress with one rank: add --world-size 2")
    plan, num_nodes = request.plan, len(nodes_of(wire))
    with Display(NAME, enabled=wire.rank == 0) as display:
        calibration, notes = measure(plan, wire, device, display)
        if request.output is not None and wire.rank == 0:
            write(request.output, calibration)
        setups = _setups(plan, calibration, wire)
        display.print(f"verifying {len(setups)} set-ups in turns")
        trainings = [training_of(unlimited(each.config, wire.world_size), wire, device) for each in setups]
        taken = trials.measure(trainings, wire, VERIFICATION * request.seconds)
        for line in notes.failed if wire.rank == 0 else ():
            display.print(line)
    if wire.rank == 0:
        found = verdict.judge(
            setups,
            taken,
            workload=plan.config.workload,
            ranks=wire.world_size,
            nodes=num_nodes,
            break_even=_break_even(calibration, setups),
        )
        print(storage.json_text(found.to_dict(), indent=2) if request.as_json else text(found), flush=True)
    return FAILED if notes.failed else 0


def _setups(plan: Plan, calibration: Calibration, wire: ProcessWire) -> list[Setup]:
    """Choose what is verified, on rank 0, which alone has the whole calibration."""
    rows: list[dict[str, Any]] = []
    if wire.rank == 0:
        predicted = grid.predict(
            Predictor(calibration), [_here(calibration)], grid.choices(calibration, _bucket_mb(plan.config))
        )
        rows = [asdict(row) for row in predicted]
    chosen = json.loads(wire.texts(json.dumps(rows))[0])
    return candidates([grid.Row(**{**row, "notes": tuple(row["notes"])}) for row in chosen], plan.reducers)


def _here(calibration: Calibration) -> Cluster:
    return Cluster(ranks=calibration.world_size, ranks_per_node=calibration.ranks_per_node)


def _bucket_mb(config: Config) -> float | None:
    """The size of buckets for a prediction; None: DDP's default, whose first bucket is smaller."""
    return None if config.bucket_mb == Config.bucket_mb else config.bucket_mb


def _break_even(calibration: Calibration, setups: list[Setup]) -> list[tuple[str, Intervals]]:
    """Return the predicted bandwidths at which each compressing set-up is faster than overlapped bf16."""
    found: list[tuple[str, Intervals]] = []
    for setup in setups:
        if not setup.is_dense:
            options = setup.config.to_dict()["reducer_options"]
            methods = [
                each
                for each in calibration.methods
                if each.reducer in DENSE
                or (each.reducer == setup.config.reducer and dict(each.options) == options)
            ]
            own = replace(calibration, methods=tuple(methods))
            (limit,) = limits(Predictor(own), [_here(own)], _bucket_mb(setup.config))
            found.append((setup.flags, limit.by_recurrence[setup.mount]))
    return found
