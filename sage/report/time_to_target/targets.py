"""The target of a group of runs, and when a run has reached it, in steps and in wall-clock seconds."""
# S = recorded steps of a run, E = evaluations of a run

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy

from sage.report.runs import Run
from sage.report.steps import Column


@dataclass(frozen=True)
class Target:
    """The value that the headline metric is to reach."""

    value: float
    origin: str
    """How the value was fixed, in words."""
    tuning: str = ""
    """Which tuning point each method runs with, in words; "" if the methods are not tuned."""


Targets = Mapping[tuple[str, int, str], Target]
"""Targets by workload, number of ranks and metric."""


@dataclass(frozen=True)
class Reached:
    """The steps and seconds after which a run reached a target; infinite if it did not."""

    steps: float
    seconds: float


def target_of(runs: Sequence[Run], targets: Targets) -> Target | None:
    """Return the target of comparable runs: the given one, else the value of their own key `target`."""
    run = runs[0]
    given = targets.get((run.config["workload"], run.config["world_size"], run.figures.metric))
    own = run.config.get("target")
    if given is not None or own is None or any(run.config.get("target") != own for run in runs):
        return given
    return Target(own, "the key target of the runs, at which they stop")


def reached(run: Run, value: float) -> Reached | None:
    """Return when the run reached the value: at the first evaluation that is at least as good.

    The grid of evaluations is the resolution; nothing is interpolated. A run that diverged missed the target.

    Returns:
        None for a run that is not finished and has neither reached the target nor diverged, or without
        recorded steps.
    """
    seconds_E = clock(run)
    if seconds_E is None:
        return None
    for record, seconds in zip(run.epochs, seconds_E.tolist(), strict=True):
        measured = record["metrics"].get(run.figures.metric)
        if measured is None:  # it was not finite
            continue
        if measured >= value if run.figures.better == "max" else measured <= value:
            return Reached(record["step"], seconds)
    is_over = run.is_finished or any(event["event"] == "diverged" for event in run.events)
    return Reached(math.inf, math.inf) if is_over else None


def clock(run: Run) -> Column | None:
    """The wall-clock time of training at the end of each evaluation, whose time is included (E).

    It is the sum of the times of the steps and evaluations so far. What a finished run took in addition, for
    loading data, checkpoints and records, is spread evenly over its steps. If not every step is recorded, a
    recorded step represents those since the previous one.
    """
    taken_S = run.steps["seconds"]
    if not numpy.isfinite(taken_S).any():
        return None
    done_S = run.steps["step"] + 1
    taken_S = numpy.where(numpy.isfinite(taken_S), taken_S, taken_S[numpy.isfinite(taken_S)].mean())
    total_S = numpy.cumsum(taken_S * numpy.diff(done_S, prepend=0))
    evaluation_E = numpy.array([record.get("seconds") or 0.0 for record in run.epochs], dtype=numpy.float64)
    if run.is_finished and run.figures.seconds and math.isfinite(run.figures.seconds):
        # The seconds of a result end before the last evaluation.
        rest = run.figures.seconds - total_S[-1] - evaluation_E[:-1].sum()
        total_S += max(0.0, rest) * done_S / done_S[-1]
    step_E = numpy.array([record["step"] for record in run.epochs], dtype=numpy.float64)
    at_E = numpy.interp(step_E, numpy.concatenate([[0.0], done_S]), numpy.concatenate([[0.0], total_S]))
    return at_E + numpy.cumsum(evaluation_E)
