"""Ratios of two settings over runs that are paired by seed, with an interval and its strength.

The interval is Student's t, 95 %, on the logarithms of the ratios. If a ratio is 0 or infinite, as where only
one of two runs reaches a target, it is [min, max] of the ratios: it contains the median of their distribution
with probability 1 - 2^(1-n) for n pairs. A bootstrap over so few pairs would be far too narrow: over three
normal values its 95 % interval covers the mean in two thirds of all cases.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean
from typing import Literal

from sage.report.seeds import spread

SMOKE, CLAIM = 3, 6
"""Pairs from which a comparison is a smoke test, and from which it supports a claim at the 5 % level: the
sign-flip test of n pairs has no p below 2^(1-n), which is 0.25 for 3 and 0.031 for 6 pairs."""

Strength = Literal["too few", "smoke", "claim"]


@dataclass(frozen=True)
class PairedRatio:
    """The ratios of one setting to another, one for each seed that both have."""

    ratios: Mapping[int, float]
    """By seed: positive, or 0 or infinity if only one side is finite."""
    num_undefined: int = 0
    """Number of seeds without a ratio because neither side is finite."""

    @property
    def num(self) -> int:
        """Number of pairs with a ratio."""
        return len(self.ratios)

    @property
    def strength(self) -> Strength:
        """`smoke` from three pairs, `claim` from six."""
        return "claim" if self.num >= CLAIM else "smoke" if self.num >= SMOKE else "too few"

    @property
    def is_finite(self) -> bool:
        """Whether no ratio is 0 or infinite."""
        return all(0 < ratio < math.inf for ratio in self.ratios.values())

    @cached_property
    def centre(self) -> float:
        """The geometric mean; the median if a ratio is 0 or infinite; NaN if there is none."""
        if not self.ratios:
            return math.nan
        if self.is_finite:
            return math.exp(fmean(map(math.log, self.ratios.values())))
        ordered = sorted(self.ratios.values())
        low, high = ordered[(self.num - 1) // 2], ordered[self.num // 2]
        # The middle on a logarithmic scale: swapping the sides inverts it. NaN between 0 and infinity.
        return low if low == high else math.sqrt(low) * math.sqrt(high)

    @cached_property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % t-interval, or [min, max] if a ratio is 0 or infinite; None for fewer than two pairs."""
        if self.num < 2:
            return None
        if not self.is_finite:
            return min(self.ratios.values()), max(self.ratios.values())
        logarithms = spread(map(math.log, self.ratios.values()))
        assert logarithms is not None
        assert logarithms.interval is not None
        low, high = logarithms.interval
        return _exp(low), _exp(high)

    @property
    def how(self) -> str:
        """How the interval was computed, in words."""
        if self.num < 2:
            return "no interval: one pair" if self.num else "no pairs"
        return f"{'t' if self.is_finite else '[min, max]'}, {self.num} pairs"


def paired_ratio(above: Mapping[int, float], below: Mapping[int, float]) -> PairedRatio:
    """Return the ratios `above / below` of the seeds that both have. Values are positive; infinity is a miss.

    >>> found = paired_ratio({0: 4.0, 1: 9.0, 2: 1.0}, {0: 2.0, 1: 3.0})
    >>> found.ratios, round(found.centre, 4), found.strength
    ({0: 2.0, 1: 3.0}, 2.4495, 'too few')
    >>> paired_ratio({0: 4.0, 1: float("inf"), 2: 1.0}, {0: 2.0, 1: 3.0, 2: 1.0}).interval
    (1.0, inf)
    """
    ratios = {}
    undefined = 0
    for seed in sorted(above.keys() & below.keys()):
        ours, theirs = above[seed], below[seed]
        if math.isinf(ours) and math.isinf(theirs):
            undefined += 1
        else:
            ratios[seed] = ours / theirs
    return PairedRatio(ratios, undefined)


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf
