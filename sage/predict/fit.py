"""Fits latency and bandwidth to the measured times of a collective.

The time of a collective is linear in both, t = steps·α + bytes·β with β = 1/B, so that weighted least squares
over all sizes and numbers of ranks gives them with their covariance. A link that a token bucket limits, as
many virtual machines have, passes a burst of bytes at once: t = steps·α + max(0, bytes − burst)·β.
"""
# M = measurements, D = draws

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, median

import numpy
from numpy.typing import NDArray

from sage.predict.calibration import Samples
from sage.predict.collectives import flat

Array = NDArray[numpy.float64]

BURSTS = (64, 16, 16)
"""Numbers of bursts that are tried, ever closer together."""

LEAST_GAIN = 2.0
"""Factor by which a burst has to reduce the squared deviations; otherwise it may be noise."""

LEAST_SPREAD = 0.02
"""The least standard error of a measurement, as a fraction of its median: few samples may agree by chance."""


@dataclass(frozen=True)
class Fit:
    """Latency and time per byte of a collective, and how far the measurements are from them."""

    latency: float
    """α in seconds."""
    seconds_per_byte: float
    """β = 1/B."""
    covariance: tuple[tuple[float, float], tuple[float, float]]
    """Of (α, β)."""
    residuals: Mapping[int, float]
    """By size in bytes: measured over fitted, minus 1; the mean over the numbers of ranks."""
    most_ranks: int
    """The largest number of ranks that was measured."""
    errors: Mapping[int, float] = field(default_factory=dict)
    """Standard errors of the residuals."""
    burst: float = 0.0
    """Bytes through a link that pass at once, before its bandwidth limits the others."""

    def correction(self, size: float) -> float:
        """Return measured over fitted at a size: the residuals, interpolated in log size and flat outside.

        A residual r of standard error e counts as r·(1 − e²/r²), and not at all if it is within its error.
        """
        sizes = sorted(self.residuals)
        logs = numpy.log([max(1, size) for size in sizes])
        ratios = [1 + _shrunk(self.residuals[size], self.errors.get(size, 0.0)) for size in sizes]
        return float(numpy.interp(numpy.log(max(1.0, size)), logs, ratios))

    def draw(self, generator: numpy.random.Generator, num: int) -> tuple[Array, Array]:
        """Draw α and β from their normal distribution, none below 0; the first of each is the fit itself."""
        (aa, ab), (_, bb) = self.covariance
        first = aa**0.5
        along = ab / first if first > 0 else 0.0
        rest = max(0.0, bb - along**2) ** 0.5
        normal_2D = generator.standard_normal((2, num))
        normal_2D[:, 0] = 0
        latency_D = self.latency + first * normal_2D[0]
        per_byte_D = self.seconds_per_byte + along * normal_2D[0] + rest * normal_2D[1]
        return numpy.maximum(latency_D, 0.0), numpy.maximum(per_byte_D, 0.0)


def _shrunk(residual: float, error: float) -> float:
    return residual * max(0.0, 1 - (error / residual) ** 2) if residual else 0.0


def fit(samples: Sequence[Samples], ranks_per_node: int, within: Fit | None = None) -> Fit:
    """Fit the measurements of one collective in one scope.

    Args:
        samples: measurements at one or more sizes and numbers of ranks.
        ranks_per_node: of the measurement. The samples of the scope `intra` are on one node in any case.
        within: the fit of the same collective within a node, if known. Its steps are then not those of the
            network; otherwise each step counts as one over the network.

    Raises:
        ValueError: if there are no measurements.
    """
    if not samples:
        raise ValueError("there are no measurements to fit: calibrate the link, or give --bandwidth")
    rows, times, errors = [], [], []
    for sample in samples:
        steps, moved, known = _row(sample, ranks_per_node, within)
        middle = median(sample.seconds)
        rows.append((steps, moved))
        times.append(middle - known)
        spread = float(numpy.std(sample.seconds, ddof=1)) if len(sample.seconds) > 1 else 0.0
        errors.append(max(spread / len(sample.seconds) ** 0.5, LEAST_SPREAD * middle, 1e-12))
    rows_M2, times_M, errors_M = numpy.array(rows), numpy.array(times), numpy.array(errors)
    burst = _burst(rows_M2, times_M, errors_M)
    rows_M2[:, 1] = numpy.maximum(rows_M2[:, 1] - burst, 0.0)
    solution, covariance = _least_squares(rows_M2 / errors_M[:, None], times_M / errors_M)
    fitted_M = numpy.maximum(rows_M2 @ solution, 1e-12)
    by_size: dict[int, list[tuple[float, float]]] = {}
    for sample, measured, error, fitted in zip(samples, times_M, errors_M, fitted_M, strict=True):
        by_size.setdefault(sample.bytes, []).append((float(measured / fitted) - 1, float(error / fitted)))
    (aa, ab), (_, bb) = covariance
    return Fit(
        latency=float(solution[0]),
        seconds_per_byte=float(solution[1]),
        covariance=((float(aa), float(ab)), (float(ab), float(bb))),
        residuals={size: fmean(r for r, _ in found) for size, found in sorted(by_size.items())},
        most_ranks=max(sample.ranks for sample in samples),
        errors={size: math.hypot(*(e for _, e in found)) / len(found) for size, found in by_size.items()},
        burst=burst,
    )


def _burst(rows_M2: Array, times_M: Array, errors_M: Array) -> float:
    """Return the burst with the least squared deviations; 0 if it does not reduce them enough.

    Two sizes or more are beyond it: they determine the bandwidth.
    """
    moved = sorted(set(rows_M2[:, 1].tolist()))
    if len(moved) < 5:
        return 0.0

    def deviations(burst: float) -> float:
        part_M2 = rows_M2 / errors_M[:, None]
        part_M2[:, 1] = numpy.maximum(rows_M2[:, 1] - burst, 0.0) / errors_M
        solution, _ = _least_squares(part_M2, times_M / errors_M)
        return float(((times_M / errors_M - part_M2 @ solution) ** 2).sum())

    low, high, burst = moved[0], 0.999 * moved[-2], 0.0
    for num in BURSTS:  # each time between the neighbours of the best
        tried = numpy.geomspace(low, high, num).tolist()
        best = min(range(num), key=lambda i: deviations(tried[i]))
        burst, low, high = tried[best], tried[max(0, best - 1)], tried[min(num - 1, best + 1)]
    return burst if LEAST_GAIN * deviations(burst) < deviations(0.0) else 0.0


def _row(samples: Samples, ranks_per_node: int, within: Fit | None) -> tuple[float, float, float]:
    """Steps and bytes of a measurement over the links that are fitted, and its known seconds on others."""
    p = samples.ranks
    on_one_node = samples.scope == "intra"
    g = p if on_one_node else min(ranks_per_node, p) if within is not None else 1
    cost = flat(samples.collective, p, g, "ring")
    terms = cost.intra if on_one_node else cost.inter
    known = 0.0 if on_one_node or within is None else cost.intra.steps * within.latency
    return terms.steps, terms.share * samples.bytes + terms.fixed_bytes, known


def _least_squares(rows_M2: Array, times_M: Array) -> tuple[Array, Array]:
    """Solve for (α, β), neither below 0, and their covariance.

    With measurements that determine only one of them the other is 0, as it is where the best value is
    negative. The covariance is scaled by the residuals if these are larger than the errors.
    """
    columns = [0, 1] if numpy.linalg.matrix_rank(rows_M2 / numpy.abs(rows_M2).max(0)) == 2 else [1]
    while True:
        part_Mc = rows_M2[:, columns]
        scale_c = numpy.abs(part_Mc).max(0)
        normal = numpy.linalg.inv((part_Mc / scale_c).T @ (part_Mc / scale_c)) / numpy.outer(scale_c, scale_c)
        found_c = normal @ part_Mc.T @ times_M
        if found_c.min() >= 0 or len(columns) == 1:
            break
        columns = [columns[1 - int(found_c.argmin())]]
    left = len(times_M) - len(columns)
    chi_square = float(((times_M - part_Mc @ found_c) ** 2).sum())
    solution, covariance = numpy.zeros(2), numpy.zeros((2, 2))
    solution[columns] = numpy.maximum(found_c, 0.0)
    covariance[numpy.ix_(columns, columns)] = normal * max(1.0, chi_square / left if left else 1.0)
    return solution, covariance
