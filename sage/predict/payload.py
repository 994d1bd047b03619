"""The messages of a reducer at a world size that was not measured.

What a rank contributes may depend on the world size: it grows where the selections of ranks are united or
padded to the largest, and falls where elements are divided among ranks. This dependence is fitted to the
measured world sizes. Outside their range it has bounds: full overlap of the selections of all ranks, and
disjoint selections.
"""
# W = world size

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean

import numpy
from numpy.typing import NDArray

from sage.predict.calibration import MethodTimes
from sage.predict.calibration_schema import Collective

SAME = 0.01
"""Sizes that differ by at most this fraction count as constant."""

MOST_BYTES = 8
"""The most that a rank contributes for each element of the gradient: a value and its index."""

GATHERS: tuple[Collective, ...] = ("all_gather", "ragged_gather")


@dataclass(frozen=True)
class Size:
    """Bytes that a rank contributes, with bounds."""

    bytes: float
    low: float
    high: float
    basis: str
    """How it was determined, such as `measured` or `interpolated`."""

    def draw(self, generator: numpy.random.Generator, num: int) -> NDArray[numpy.float64]:
        """Draw uniformly within the bounds; the first draw is the size itself."""
        bytes_D = generator.uniform(self.low, max(self.low, self.high), num)
        bytes_D[0] = self.bytes
        return bytes_D


@dataclass(frozen=True)
class Traffic:
    """One collective of a reduction at a world size; `count` of them, one after the other."""

    collective: Collective
    count: float
    size: Size


def traffic(method: MethodTimes, ranks: int, numel: int) -> tuple[Traffic, ...]:
    """Return the messages of a reduction of `numel` elements; none for a single rank."""
    if ranks == 1:
        return ()
    most = MOST_BYTES * numel
    is_sparse = method.density is not None
    orders: set[tuple[Collective, ...]] = {
        tuple(message.collective for message in messages) for messages in method.messages.values()
    }
    if ranks in method.messages or len(orders) == 1:
        messages = method.messages.get(ranks) or next(iter(method.messages.values()))
        order: tuple[Collective, ...] = tuple(message.collective for message in messages)
        sizes = [
            {w: float(messages[i].bytes) for w, messages in method.messages.items() if len(messages) > i}
            for i in range(len(order))
        ]
        return tuple(
            Traffic(name, 1.0, size_at(name, by_W, ranks, most=most, is_sparse=is_sparse))
            for name, by_W in zip(order, sizes, strict=True)
        )
    # The sequence of collectives depends on W: the number and mean size of each kind take its place.
    result = []
    names: dict[Collective, None] = dict.fromkeys(name for order in sorted(orders) for name in order)
    for name in names:
        counts, sizes_W = {}, {}
        for w, messages in method.messages.items():
            own = [message.bytes for message in messages if message.collective == name]
            if own:
                counts[w], sizes_W[w] = float(len(own)), fmean(own)
        result.append(
            Traffic(
                name,
                _power(counts, ranks)[0],
                size_at(name, sizes_W, ranks, most=most, is_sparse=is_sparse),
            )
        )
    return tuple(result)


def size_at(
    collective: Collective, by_W: Mapping[int, float], ranks: int, *, most: float, is_sparse: bool
) -> Size:
    """Return the size of a message at a world size, from its sizes at others.

    Args:
        collective: the collective of the message.
        by_W: bytes by measured world size.
        ranks: the world size.
        most: the largest possible size, in bytes.
        is_sparse: whether the ranks select elements, so that the size may depend on W.
    """
    if ranks in by_W:
        return _fixed(by_W[ranks], "measured")
    nearest = min(by_W, key=lambda w: abs(math.log(w / ranks)))
    at = by_W[nearest]
    if max(by_W.values()) <= (1 + SAME) * min(by_W.values()):
        if len(by_W) > 1 or not is_sparse:
            return _fixed(fmean(by_W.values()), "constant")
        disjoint = min(most, at * max(ranks / nearest, nearest / ranks))
        return Size(at, min(at, disjoint), max(at, disjoint), "assumed constant, one world size was measured")
    size, slope = _power(by_W, ranks)
    if min(by_W) < ranks < max(by_W):
        return _fixed(size, "interpolated")
    # The bounds: no further change, and a change in proportion to W, as of disjoint selections.
    change = (ranks / nearest) ** math.copysign(1, slope)
    bounds = sorted((at, min(most, at * change)))
    if slope < 0:
        basis = f"divided among ranks, as W^{slope:.2f}"
    elif collective in GATHERS:
        size, basis = _padded(by_W, ranks), "padded to the largest of W ranks"
    else:
        basis = f"grows by union, as W^{slope:.2f}"
    return Size(min(max(size, bounds[0]), bounds[1]), bounds[0], bounds[1], basis)


def _fixed(size: float, basis: str) -> Size:
    return Size(size, size, size, basis)


def _power(by_W: Mapping[int, float], ranks: int) -> tuple[float, float]:
    """Return the value of c·W^p through the two nearest measured world sizes, and p.

    Beyond the measured range, p is at most 1 in magnitude.
    """
    sizes = sorted(by_W)
    logs_W = numpy.log(sizes)
    logs = numpy.log([max(by_W[w], 1e-9) for w in sizes])
    if len(sizes) == 1:
        return by_W[sizes[0]], 0.0
    right = min(max(sum(w < ranks for w in sizes), 1), len(sizes) - 1)
    slope = float((logs[right] - logs[right - 1]) / (logs_W[right] - logs_W[right - 1]))
    if not sizes[0] <= ranks <= sizes[-1]:
        slope = min(max(slope, -1.0), 1.0)
    edge = right - 1 if ranks < sizes[-1] else right
    return float(numpy.exp(logs[edge] + slope * (math.log(ranks) - logs_W[edge]))), slope


def _padded(by_W: Mapping[int, float], ranks: int) -> float:
    """Fit mean + deviation·m(W), with m(W) the expected maximum of W standard normal values."""
    x: Sequence[float] = [largest_of(w) for w in by_W]
    deviation, middle = numpy.polyfit(x, list(by_W.values()), 1)
    return float(middle + deviation * largest_of(ranks))


def largest_of(num: int) -> float:
    """Return about the expected maximum of `num` standard normal values (Blom 1958).

    >>> round(largest_of(1), 2), round(largest_of(8), 2)
    (0.0, 1.43)
    """
    return NormalDist().inv_cdf((num - 0.375) / (num + 0.25))
