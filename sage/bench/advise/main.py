"""`sage advise`: which set-up to run here, from measurements of at most five minutes."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from sage import storage
from sage.bench.advise import predictions, trials
from sage.bench.advise.judge import judge
from sage.bench.advise.setups import REFERENCES, flags
from sage.bench.calibrate import ranks
from sage.bench.calibrate.main import check_output
from sage.bench.calibrate.measurement import measure, training_of
from sage.bench.calibrate.plan import Plan, unlimited
from sage.bench.calibrate.scopes import nodes_of
from sage.comm.process import ProcessWire
from sage.config import Config
from sage.exit_status import FAILED
from sage.predict.calibration import write
from sage.records.progress import Display
from sage.train.loop import Training

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
        names = {config.reducer for config in self.reducers}
        if not names & set(REFERENCES):
            raise ValueError(f"--reducers has no reference: add {' or '.join(REFERENCES)}")
        if not names - set(REFERENCES):
            raise ValueError("--reducers has no method that compresses: add one, such as topk")

    @property
    def plan(self) -> Plan:
        """What the calibration measures: the collectives, and for the same time the reducers."""
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
    if request.output is not None:
        check_output(request.output, wire)
    plan, num_nodes = request.plan, len(nodes_of(wire))
    with Display(NAME, enabled=wire.rank == 0) as display:
        calibration, notes = measure(plan, wire, device, display)
        if request.output is not None and wire.rank == 0:
            request.output.parent.mkdir(parents=True, exist_ok=True)
            write(request.output, calibration)
        setups = predictions.choose(calibration, plan.reducers, wire, flags, device)
        display.print(f"verifying {len(setups)} set-ups in turns")
        blocks = [
            block(training_of(unlimited(setup.config, wire.world_size), wire, device)) for setup in setups
        ]
        taken = trials.measure(blocks, wire, VERIFICATION * request.seconds)
    if wire.rank == 0:
        verdict = judge(
            setups,
            taken,
            workload=plan.config.workload,
            command=f"sage run {plan.config.workload}",
            ranks=wire.world_size,
            nodes=num_nodes,
            break_even=predictions.break_even(calibration, setups),
            failed=notes.failed,
        )
        print(storage.json_text(verdict.to_dict(), indent=2) if request.as_json else verdict, flush=True)
    return FAILED if notes.failed else 0


def block(training: Training) -> trials.Block:
    """Return a function that takes some steps of a training."""
    batches = training.endless_batches()

    def take(steps: int) -> None:
        for _ in range(steps):
            training.take_step(next(batches))
        training.settle()

    return take
