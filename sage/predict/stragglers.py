"""The slowest of W ranks, from the spread of measured times."""
# n = samples, W = ranks

from collections.abc import Sequence

import numpy


def slowest(samples: Sequence[float], ranks: int) -> float:
    """Return the expected maximum of W independent draws from the samples.

    With the samples in order, the maximum is the i-th with probability (i/n)^W − ((i−1)/n)^W. It is the mean
    for W = 1, and grows towards the largest sample, which it does not exceed.

    >>> slowest([1.0, 2.0, 3.0], 1)
    2.0
    >>> round(slowest([1.0, 2.0, 3.0], 10), 2)
    2.98
    """
    ordered = numpy.sort(numpy.asarray(samples, dtype=numpy.float64))
    edges = (numpy.arange(len(ordered) + 1) / len(ordered)) ** ranks
    return float(numpy.diff(edges) @ ordered)
