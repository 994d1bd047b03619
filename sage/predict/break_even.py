"""When a method is faster than the baseline, by root finding over the bandwidth."""

import math
from collections.abc import Callable

import numpy
from numpy.typing import NDArray

from sage.predict.closed_forms import LESS, Intervals

LOWEST, HIGHEST = 1e2, 1e14
"""The bandwidths that are searched, in bytes per second."""

FIRST, PARTS, ROUNDS = 128, 64, 3
"""Number of bandwidths of the first search; parts into which each root's interval is divided; divisions."""

Array = NDArray[numpy.float64]

Times = Callable[[Array], tuple[Array, Array]]
"""The seconds of the baseline and of the method, at bandwidths in bytes per second."""


def break_even(times: Times) -> Intervals:
    """Return the intervals of bandwidth in which the method is faster, by root finding in the logarithm.

    Each interval in which the sign changes is divided into equal parts, of which the one with the change is
    divided again. An end of the searched range counts as 0 or infinity. Intervals narrower than the steps of
    the first search are missed.
    """

    def wins(bandwidths: Array) -> NDArray[numpy.bool_]:
        baseline, method = times(bandwidths)
        return method < LESS * baseline

    grid_P = numpy.geomspace(LOWEST, HIGHEST, FIRST)
    wins_P = wins(grid_P)
    turns = numpy.flatnonzero(wins_P[1:] != wins_P[:-1])
    logs_T2 = numpy.log(numpy.stack([grid_P[turns], grid_P[turns + 1]], axis=1))
    for _ in range(ROUNDS if len(turns) else 0):
        inner_TP = numpy.linspace(logs_T2[:, 0], logs_T2[:, 1], PARTS + 1, axis=1)
        wins_TP = wins(numpy.exp(inner_TP).ravel()).reshape(inner_TP.shape)
        first_T = (wins_TP != wins_TP[:, :1]).argmax(axis=1)
        first_T = numpy.maximum(first_T, 1)
        rows = numpy.arange(len(turns))
        logs_T2 = numpy.stack([inner_TP[rows, first_T - 1], inner_TP[rows, first_T]], axis=1)
    edges = [float(edge) for edge in numpy.exp(logs_T2.mean(axis=1))]
    if wins_P[0]:
        edges = [0.0, *edges]
    if wins_P[-1]:
        edges = [*edges, math.inf]
    return tuple(zip(edges[::2], edges[1::2], strict=True))
