"""Families of distributions that are fitted to gradients: SIDCo's three, the normal and the Laplace.

SIDCo (Abdelmoniem et al., MLSys 2021) models a gradient g as symmetric about zero, with |g| exponential,
gamma or generalised Pareto: the double exponential, double gamma and double generalised Pareto. Thresholds
are quantiles of |g|, so every family is compared as a distribution of |g|.
"""
# N = elements of a sample, Q = points at which a function is evaluated

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy
from numpy.typing import NDArray
from scipy.special import digamma, gammaincc, ndtr, polygamma

from sage.bench.distribution.pareto import likeliest_pareto

Array = NDArray[numpy.float64]
Estimator = Literal["mle", "sidco"]
"""How parameters are estimated: by maximum likelihood, or by SIDCo's closed forms."""

NARROW = 1e-12
"""Values whose relative spread is smaller have no fit."""
WIDEST = 300.0
"""Quantiles are searched within exp(±this) times the scale."""


@dataclass(frozen=True)
class Fitted:
    """A family with parameters.

    Args:
        family: Its name, a key of `FAMILIES`.
        scale: σ of the normal; the mean distance from the median of the Laplace; the scale of the rest.
        location: Mean of the normal, median of the Laplace; 0 for the rest.
        shape: α of the gamma; c of the generalised Pareto, positive for a heavy tail; NaN for the rest.
    """

    family: str
    scale: float
    location: float = 0.0
    shape: float = numpy.nan

    def above(self, t_Q: Array) -> Array:
        """The probability that |g| exceeds t, for each t of at least 0 (Q)."""
        return FAMILIES[self.family].above(self, t_Q)

    def exceeded(self, share_Q: Array) -> Array:
        """The magnitude that a given share exceeds, for each share in (0, 1) (Q)."""
        low_Q = numpy.full(len(share_Q), numpy.log(self.scale) - WIDEST)
        high_Q = low_Q + 2 * WIDEST
        for _ in range(60):  # 600 · 2^-60 is below the precision of a float64
            middle_Q = (low_Q + high_Q) / 2
            is_low_Q = self.above(numpy.exp(middle_Q)) > share_Q
            low_Q, high_Q = numpy.where(is_low_Q, middle_Q, low_Q), numpy.where(is_low_Q, high_Q, middle_Q)
        return numpy.exp(high_Q)


@dataclass(frozen=True)
class Family:
    """A family: its number of parameters, how they are estimated, and its tail."""

    num_parameters: int
    fit: Callable[[Array, Estimator], Fitted]
    """The fit to the nonzero elements of a gradient (N), which are not all equal in magnitude."""
    above: Callable[[Fitted, Array], Array]
    """See `Fitted.above`."""


def fit(family: str, x_N: Array, estimator: Estimator = "mle") -> Fitted | None:
    """Fit a family to the nonzero elements of a gradient (N).

    The normal, the Laplace and the double exponential have the same estimates under both estimators.

    Returns:
        The fit, or None if there are fewer than two elements or their magnitudes are equal.
    """
    if len(x_N) < 2 or numpy.ptp(numpy.abs(x_N)) <= NARROW * numpy.abs(x_N).max():
        return None
    fitted = FAMILIES[family].fit(x_N, estimator)
    return fitted if 0 < fitted.scale < numpy.inf else None


# Estimates.


def _normal(x_N: Array, _: Estimator) -> Fitted:
    return Fitted("normal", float(x_N.std()), float(x_N.mean()))


def _laplace(x_N: Array, _: Estimator) -> Fitted:
    median = float(numpy.median(x_N))
    return Fitted("Laplace", float(numpy.abs(x_N - median).mean()), median)


def _exponential(x_N: Array, _: Estimator) -> Fitted:
    return Fitted("double exponential", float(numpy.abs(x_N).mean()))


def _gamma(x_N: Array, estimator: Estimator) -> Fitted:
    """α from ln α − ψ(α) = s, where s = ln mean|g| − mean ln|g|, and the scale mean|g|/α.

    SIDCo's α is the approximation of Minka (2002), where Newton's method for the maximum likelihood begins.
    """
    m_N = numpy.abs(x_N)
    mean = float(m_N.mean())
    s = float(numpy.log(mean) - numpy.log(m_N).mean())
    shape = (3 - s + numpy.sqrt((s - 3) ** 2 + 24 * s)) / (12 * s)
    if estimator == "mle":
        for _ in range(20):  # each step doubles the number of digits
            slope = 1 / shape - polygamma(1, shape)
            shape = 1 / (1 / shape + (numpy.log(shape) - digamma(shape) - s) / (shape**2 * slope))
    return Fitted("double gamma", mean / float(shape), shape=float(shape))


def _pareto(x_N: Array, estimator: Estimator) -> Fitted:
    """Maximum likelihood, or by moments: c = ½(1 − μ²/σ²) and the scale ½ μ(μ²/σ² + 1) of |g|.

    SIDCo's κ is −c.
    """
    m_N = numpy.abs(x_N)
    if estimator == "sidco":
        mean, ratio = float(m_N.mean()), float(m_N.mean() ** 2 / m_N.var())
        return Fitted("double generalised Pareto", mean * (ratio + 1) / 2, shape=(1 - ratio) / 2)
    shape, scale = likeliest_pareto(m_N)
    return Fitted("double generalised Pareto", scale, shape=shape)


# Tails.


def _above_normal(of: Fitted, t_Q: Array) -> Array:
    above_Q: Array = ndtr((of.location - t_Q) / of.scale) + ndtr((-t_Q - of.location) / of.scale)
    return above_Q


def _above_laplace(of: Fitted, t_Q: Array) -> Array:
    total_Q = numpy.zeros(len(t_Q))
    for location in (of.location, -of.location):  # g > t, then −g > t
        z_Q = (t_Q - location) / of.scale
        half_Q = numpy.exp(-numpy.abs(z_Q)) / 2
        total_Q += numpy.where(z_Q >= 0, half_Q, 1 - half_Q)
    return total_Q


def _above_exponential(of: Fitted, t_Q: Array) -> Array:
    return numpy.exp(-t_Q / of.scale)


def _above_gamma(of: Fitted, t_Q: Array) -> Array:
    above_Q: Array = gammaincc(of.shape, t_Q / of.scale)
    return above_Q


def _above_pareto(of: Fitted, t_Q: Array) -> Array:
    if of.shape == 0:
        return numpy.exp(-t_Q / of.scale)
    z_Q = numpy.maximum(of.shape * t_Q / of.scale, -1.0)  # −1: the end of the support, where c is negative
    with numpy.errstate(divide="ignore"):
        return numpy.exp(-numpy.log1p(z_Q) / of.shape)


FAMILIES: Mapping[str, Family] = {
    "normal": Family(2, _normal, _above_normal),
    "Laplace": Family(2, _laplace, _above_laplace),
    "double exponential": Family(1, _exponential, _above_exponential),
    "double gamma": Family(2, _gamma, _above_gamma),
    "double generalised Pareto": Family(2, _pareto, _above_pareto),
}
"""The families by name, in the order of tables."""

SIDCO = ("double exponential", "double gamma", "double generalised Pareto")
"""The families of SIDCo."""
