"""The ratio of two settings' step times, with an interval over seeds, or over steps if there is one seed."""
# S = recorded steps of a run

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy

from sage.report.paired_ratio import paired_ratio
from sage.report.runs import Run
from sage.report.steps import Column

WARM_UP, MAX_WARM_UP = 0.1, 10
"""The share of a run's recorded steps that is left out at its start, and at most how many."""


@dataclass(frozen=True)
class StepRatio:
    """A ratio of median step times, B over A."""

    ratio: float
    interval: tuple[float, float] | None
    """The 95 % interval; None if there are too few steps."""
    how: str
    num: int
    """Number of pairs of runs."""


def step_ratio(pairs: Mapping[int, tuple[Run, Run]]) -> StepRatio | None:
    """Return the ratio of the median step times of rank 0; None if no pair has recorded steps.

    With several seeds the interval is that of the paired ratios, whose spread contains that over steps. With
    one seed it is over steps: the medians' distribution-free intervals, combined on logarithms.
    """
    seconds = {seed: (_seconds(a), _seconds(b)) for seed, (a, b) in pairs.items()}
    seconds = {seed: both for seed, both in seconds.items() if all(map(len, both))}
    if not seconds:
        return None
    if len(seconds) > 1:
        medians = ({seed: float(numpy.median(both[i])) for seed, both in seconds.items()} for i in (1, 0))
        paired = paired_ratio(*medians)
        return StepRatio(paired.centre, paired.interval, f"over {paired.num} seeds", paired.num)
    ((a_S, b_S),) = seconds.values()
    ratio = float(numpy.median(b_S) / numpy.median(a_S))
    ours, theirs = median_interval(b_S), median_interval(a_S)
    if ours is None or theirs is None:
        return StepRatio(ratio, None, "one seed, too few steps", 1)
    # The square-root rule for two intervals (Zou and Donner, 2008, https://doi.org/10.1002/sim.3095).
    above, below = math.log(numpy.median(b_S)), math.log(numpy.median(a_S))
    low = math.hypot(above - math.log(ours[0]), math.log(theirs[1]) - below)
    high = math.hypot(math.log(ours[1]) - above, below - math.log(theirs[0]))
    return StepRatio(ratio, (ratio * math.exp(-low), ratio * math.exp(high)), "over the steps of one seed", 1)


def median_interval(values_S: Column) -> tuple[float, float] | None:
    """The distribution-free 95 % interval of the median, from the order statistics of independent values.

    Returns:
        The interval; None for fewer than six values, of which even the range does not cover the median in
        95 of 100 cases.
    """
    from scipy.stats import binom  # here, because the import takes longer than most comparisons

    num = len(values_S)
    # The number of values below the median is binomial; this many smallest and largest are outside.
    rank = int(binom.ppf(0.025, num, 0.5))
    if rank == 0:
        return None
    ordered_S = numpy.sort(values_S)
    return float(ordered_S[rank - 1]), float(ordered_S[num - rank])


def _seconds(run: Run) -> Column:
    """The finite, positive times of the recorded steps after the warm-up (S)."""
    seconds_S = run.steps["seconds"]
    seconds_S = seconds_S[min(MAX_WARM_UP, int(WARM_UP * len(seconds_S))) :]
    return seconds_S[numpy.isfinite(seconds_S) & (seconds_S > 0)]
