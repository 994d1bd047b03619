"""Statistics over the runs of a setting that differ only in the seed.

Intervals are Student's t, 95 %. The interval of a ratio is computed on logarithms: over pairs if both sides
have runs with the same seeds, else with Welch's method for two samples. With fewer than two runs on a side
there is no interval. Bootstrap intervals over so few runs would be far too narrow.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

T_975 = (
    (1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (5, 2.571), (6, 2.447), (7, 2.365), (8, 2.306),
    (9, 2.262), (10, 2.228), (12, 2.179), (15, 2.131), (20, 2.086), (30, 2.042),
    (60, 2.000), (120, 1.980), (1000, 1.962),
)  # fmt: skip
"""Pairs of degrees of freedom and Student's 97.5 % quantile."""


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation of a value over the runs of a setting."""

    mean: float
    """NaN if no run's value is finite."""
    sd: float | None
    """Sample standard deviation; None for fewer than two finite values."""
    num: int
    """Number of finite values."""
    num_not_finite: int = 0

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % confidence interval of the mean."""
        if self.sd is None:
            return None
        half = t_quantile(self.num - 1) * self.sd / math.sqrt(self.num)
        return self.mean - half, self.mean + half


@dataclass(frozen=True)
class Ratio:
    """A ratio to the baseline, with its confidence interval."""

    mean: float
    """The ratio of geometric means."""
    interval: tuple[float, float] | None
    how: str
    """`paired`, `unpaired`, or the reason why there is no interval."""


def spread(values: Iterable[float | None]) -> Spread | None:
    """Mean and standard deviation of the finite values; None if no run has a value.

    >>> spread([1.0, 3.0, None, float("nan")])
    Spread(mean=2.0, sd=1.4142135623730951, num=2, num_not_finite=1)
    """
    known = [value for value in values if value is not None]
    finite = [value for value in known if math.isfinite(value)]
    if not known:
        return None
    mean = fmean(finite) if finite else math.nan
    return Spread(mean, stdev(finite) if len(finite) > 1 else None, len(finite), len(known) - len(finite))


def ratio(
    above: Sequence[tuple[int, float | None]], below: Sequence[tuple[int, float | None]]
) -> Ratio | None:
    """Ratio of one setting's values to the baseline's. Both are pairs of seed and value.

    >>> ratio([(0, 4.0), (1, 4.0)], [(0, 2.0), (1, 2.0), (2, 2.0)])
    Ratio(mean=2.0, interval=(2.0, 2.0), how='paired')
    """
    ours, theirs = _logarithms(above), _logarithms(below)
    if not ours or not theirs:
        return None
    pairs = [(ours[seed][0], theirs[seed][0]) for seed in ours.keys() & theirs.keys()]
    is_once = all(len(values) == 1 for side in (ours, theirs) for values in side.values())
    if is_once and len(pairs) > 1:
        difference = spread(our - their for our, their in pairs)
        assert difference is not None
        return _ratio(difference.mean, difference.interval, "paired")
    x, y = ([value for values in side.values() for value in values] for side in (ours, theirs))
    return _ratio(fmean(x) - fmean(y), *_welch(x, y))


def t_quantile(degrees: float) -> float:
    """Student's 97.5 % quantile at the largest tabulated degrees of freedom not above `degrees`."""
    return next((quantile for known, quantile in reversed(T_975) if known <= degrees), T_975[0][1])


def _welch(x: Sequence[float], y: Sequence[float]) -> tuple[tuple[float, float] | None, str]:
    """Confidence interval of the difference of two means (Welch, 1947)."""
    if len(x) < 2 or len(y) < 2:
        return None, "one run" if len(x) == len(y) == 1 else "one run on a side"
    a, b = stdev(x) ** 2 / len(x), stdev(y) ** 2 / len(y)
    degrees = (
        (a + b) ** 2 / (a**2 / (len(x) - 1) + b**2 / (len(y) - 1))
        if a + b > 0
        else float(len(x) + len(y) - 2)
    )
    half = t_quantile(degrees) * math.sqrt(a + b)
    centre = fmean(x) - fmean(y)
    return (centre - half, centre + half), "unpaired"


def _ratio(mean: float, interval: tuple[float, float] | None, how: str) -> Ratio:
    bounds = None if interval is None else (_exp(interval[0]), _exp(interval[1]))
    return Ratio(_exp(mean), bounds, how)


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf


def _logarithms(values: Sequence[tuple[int, float | None]]) -> Mapping[int, list[float]]:
    logs: dict[int, list[float]] = {}
    for seed, value in values:
        if value is not None and 0 < value < math.inf:
            logs.setdefault(seed, []).append(math.log(value))
    return logs
