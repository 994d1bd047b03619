"""The maximum likelihood of the generalised Pareto distribution, by its profile (Grimshaw, 1993)."""
# N = elements of a sample

from typing import Any

import numpy
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

EXCLUDED = 1e3
"""Loss of shapes without a bound; finite, because the search interpolates losses."""
GRID_SAMPLE = 4096
"""Elements on which the interval of the maximum is searched; it is then refined on all of them."""


def likeliest_pareto(m_N: NDArray[numpy.float64]) -> tuple[float, float]:
    """Shape c and scale σ of the generalised Pareto distribution with the largest likelihood.

    The density is (1 + c·m/σ)^(−1 − 1/c)/σ. For a given θ = c/σ the best c is the mean of ln(1 + θ·m), so
    that one variable is left: the negative log-likelihood of an element is ln(c/θ) + c + 1. For c below −1 it
    has no bound, so such shapes are excluded.

    Args:
        m_N: magnitudes above 0, not all equal (N).
    """
    mean = float(m_N.mean())
    y_N = m_N / mean
    end = -1 / float(y_N.max())
    thetas = [*(end * numpy.linspace(0.999, 0.05, 20)), 0.0, *numpy.logspace(-2, 8, 41)]
    some = y_N[:: max(1, len(y_N) // GRID_SAMPLE)]
    losses = [_loss(theta, some) for theta in thetas]
    best = int(numpy.argmin(losses))
    bounds = thetas[max(0, best - 2)], thetas[min(len(thetas) - 1, best + 2)]
    found: Any = minimize_scalar(
        _loss, bounds=bounds, args=(y_N,), method="bounded", options={"xatol": 1e-7 * (bounds[1] - bounds[0])}
    )
    theta = float(found.x)
    shape = float(numpy.log1p(theta * y_N).mean())
    return shape, mean * (shape / theta if theta else 1.0)


def _loss(theta: float, y_N: NDArray[numpy.float64]) -> float:
    """The negative log-likelihood of an element; the mean of y is 1."""
    shape = float(numpy.log1p(theta * y_N).mean())
    if shape <= -1:
        return -EXCLUDED * shape
    return float(numpy.log(shape / theta if theta else 1.0)) + shape + 1
