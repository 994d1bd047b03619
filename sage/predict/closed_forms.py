"""When a method is faster than the overlapped baseline, in closed form.

The baseline sends k buckets during backward, the first of which is ready after t_1. The method runs after
backward. With x = 1/B, the seconds that a byte takes on the link:

    T0 = t_f + t_1 + max(t_b − t_1 + (1 − 1/γ)·(k−1)·(A + v·x), (k−1)·(A + v·x)) + A + v_last·x
    TM = t_f + t_b + t_ed + L + v_M·x

For equal buckets that are ready at equal intervals, T0 is the time of the recurrence. With t_1 = 0 it is the
model of two terms (`recurrence.two_term`). Both are piecewise linear in x, and T0 − ρ·TM is convex, so that
the method is faster in at most two intervals of bandwidth.
"""

import math
from dataclasses import dataclass
from typing import Any

from sage.predict.recurrence import two_term

Intervals = tuple[tuple[float, float], ...]
"""Intervals of bandwidth in bytes per second, from the lowest."""

LESS = 1 - 1e-9
"""A faster method needs less than this share of the baseline's time, as equal times differ by rounding."""


@dataclass(frozen=True)
class Baseline:
    """An overlapped dense reduction: seconds, and bytes through the link of one rank."""

    other: float
    """t_f: forward and optimizer."""
    backward: float
    """t_b."""
    buckets: int
    """k."""
    latency: float
    """A: latency of the reduction of one bucket."""
    volume: float
    """v: bytes through the link for each bucket but the last; r·b for a ring, with r = 2(W−1)/W."""
    last_volume: float
    gamma: float = 1.0
    """γ: time of backward during communication, divided by that of backward alone."""
    first_ready: float = 0.0
    """t_1: when communication may begin, from the start of backward."""

    @property
    def total_volume(self) -> float:
        """r·S0: bytes through the link in a step."""
        return (self.buckets - 1) * self.volume + self.last_volume

    def seconds(self, x: Any) -> Any:
        """Return T0, of a number or an array."""
        usual, last = self.latency + self.volume * x, self.latency + self.last_volume * x
        slowed = (1 - 1 / self.gamma) * (self.buckets - 1) * usual
        left = self.backward - self.first_ready + slowed
        return self.other + self.first_ready + two_term(self.buckets, left, usual, last)

    def seconds_without_overlap(self, x: Any) -> Any:
        """Return the step time of one dense reduction after backward, of a number or an array."""
        return self.other + self.backward + self.latency + self.total_volume * x

    @property
    def knee(self) -> float:
        """x above which communication is no longer hidden behind backward; below 0 if it never is."""
        if self.buckets == 1 or self.volume == 0:
            return math.inf
        left = self.gamma * (self.backward - self.first_ready)
        return (left / (self.buckets - 1) - self.latency) / self.volume


@dataclass(frozen=True)
class Compressed:
    """A method that reduces after backward."""

    coding: float
    """t_ed: seconds to encode and decode at this world size."""
    latency: float
    """L: latency of its collectives."""
    volume: float
    """v_M: bytes through the link of one rank."""

    def seconds(self, baseline: Baseline, x: Any) -> Any:
        """Return TM, of a number or an array."""
        return baseline.other + baseline.backward + self.coding + self.latency + self.volume * x


def break_even(baseline: Baseline, method: Compressed, rho: float = 1.0) -> Intervals:
    """Return the bandwidths at which the method needs less time than the overlapped baseline.

    Args:
        baseline: the overlapped dense reduction.
        method: the method.
        rho: steps that the method needs to a target over those of the baseline; infinite if it misses it.
    """
    if math.isinf(rho):
        return ()
    at_zero = rho * method.seconds(baseline, 0.0)
    knee = min(max(baseline.knee, 0.0), math.inf)
    slowed = (1 - 1 / baseline.gamma) * (baseline.buckets - 1)
    hidden = LESS * (baseline.other + baseline.backward + (1 + slowed) * baseline.latency)
    bound = LESS * (baseline.other + baseline.first_ready + baseline.buckets * baseline.latency)
    pieces = [
        *_above_zero(
            hidden - at_zero,
            LESS * (baseline.last_volume + slowed * baseline.volume) - rho * method.volume,
            0.0,
            knee,
        ),
        *_above_zero(bound - at_zero, LESS * baseline.total_volume - rho * method.volume, knee, math.inf),
    ]
    joined: list[tuple[float, float]] = []
    for low, high in pieces:
        if joined and math.isclose(low, joined[-1][1], rel_tol=1e-12):
            low = joined.pop()[0]
        joined.append((low, high))
    return tuple(sorted((_inverse(high), _inverse(low)) for low, high in joined))


def break_even_without_overlap(baseline: Baseline, method: Compressed) -> float:
    """Return the bandwidth below which the method is faster than a dense reduction after backward.

    Infinite if it always is, 0 if it never is.
    """
    saved = baseline.total_volume - method.volume
    cost = method.coding + method.latency - baseline.latency
    if saved <= 0:
        return math.inf if cost < 0 else 0.0
    return math.inf if cost <= 0 else saved / cost


def most_ranks(dense_bytes: float, contributed_bytes: float) -> float:
    """Return 2·S0/S_c: the world size from which an all-gather moves more bytes than the dense all-reduce.

    >>> most_ranks(2 * 1e6, 8 * 0.01 * 1e6)  # top-k at density 0.01 against bf16
    50.0
    """
    return 2 * dense_bytes / contributed_bytes if contributed_bytes else math.inf


def compression_needed(baseline: Baseline, x: float) -> float:
    """Return the compression, free of cost, that hides all but the last bucket's communication.

    Infinite if the latency alone exceeds backward; at most 1 if no compression is needed.
    """
    if baseline.buckets == 1:
        return 1.0
    left = baseline.gamma * (baseline.backward - baseline.first_ready)
    left -= (baseline.buckets - 1) * baseline.latency
    return (baseline.buckets - 1) * baseline.volume * x / left if left > 0 else math.inf


def coding_budget(baseline: Baseline, method: Compressed, x: float, rho: float = 1.0) -> float:
    """Return the seconds of encoding and decoding below which the method is faster; it may be negative."""
    return float(baseline.seconds(x) / rho - method.seconds(baseline, x) + method.coding)


def _above_zero(at_zero: float, slope: float, low: float, high: float) -> list[tuple[float, float]]:
    """The part of [low, high] in which at_zero + slope·x is above 0."""
    if slope > 0:
        low = max(low, -at_zero / slope)
    elif slope < 0:
        high = min(high, -at_zero / slope)
    elif at_zero <= 0:
        return []
    return [(low, high)] if low < high else []


def _inverse(x: float) -> float:
    return 0.0 if math.isinf(x) else math.inf if x == 0 else 1 / x
