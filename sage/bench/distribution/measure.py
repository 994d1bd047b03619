"""Measures the distribution of a gradient: fits, KS distances, and what a fitted threshold would select."""
# N = elements of a part of the gradient, U = nonzero elements that the fits use, Q = points of a curve

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy
import torch
from torch import Tensor

from sage.bench.distribution.families import FAMILIES, Array, Estimator, Fitted, fit
from sage.bench.gradients import Gradients
from sage.bench.loopback_wire import LoopbackWire
from sage.bench.repetitions import Case
from sage.reduction.error_feedback import ErrorFeedback
from sage.reduction.layout import Layout

SHARES = (0.1, 0.01, 0.001)
"""The shares of elements for which a threshold is taken from each fit, as SIDCo's densities."""
CONFIDENCE = math.sqrt(math.log(2 / 0.05) / 2)
"""Of U independent elements, the empirical distribution is within this / √U of the true one, in 95 of 100
cases (Dvoretzky, Kiefer and Wolfowitz, 1956, with the constant of Massart, 1990)."""
POINTS = 80
"""Points of a curve."""
WHOLE = "whole gradient"
WITHOUT, WITH = "none", "residual"
"""Error feedback of a measured signal: the gradient g, or g plus the residual."""


@dataclass(frozen=True)
class Fit:
    """A fitted family, compared with the elements that it was fitted to."""

    fitted: Fitted
    ks: float
    """Kolmogorov–Smirnov distance of |g|: the largest difference of the two distribution functions."""
    selected: tuple[float, ...]
    """Share of the elements above the fit's threshold / the share it was to select, for each of `SHARES`."""


@dataclass(frozen=True)
class Row:
    """A part of one gradient, with its fits."""

    trace: str
    step: int
    """The run's step."""
    memory: str
    """`WITHOUT` or `WITH`."""
    layer: str
    """The parameter's name, or `WHOLE`."""
    elements: int
    """Elements of it in the trace, N."""
    used: int
    """Nonzero elements that the fits use, U."""
    zeros: float
    """Share of the N elements that are exactly zero."""
    positive: float
    """Share of the nonzero elements that are positive; NaN if there are none."""
    energy: tuple[float, ...]
    """Share of the squared norm that the largest elements hold, for each of `SHARES` of the nonzero ones."""
    fits: dict[str, Fit]
    """By family; without those that could not be fitted."""
    curve: tuple[Array, Array] | None = field(repr=False, default=None)
    """Shares (Q), and the magnitude that each share of the elements exceeds (Q); of the whole gradient."""

    @property
    def error(self) -> float:
        """The 95 % sampling error of the KS distances: √(ln(2/0.05)/(2U))."""
        return CONFIDENCE / math.sqrt(self.used) if self.used else math.nan

    @property
    def closest(self) -> list[str]:
        """The families whose KS distance is within the sampling error of the smallest.

        Those with the fewest parameters come first, and then those with the smallest distance.
        """
        if not self.fits:
            return []
        least = min(each.ks for each in self.fits.values())
        near = [name for name, each in self.fits.items() if each.ks <= least + self.error]
        return sorted(near, key=lambda name: (FAMILIES[name].num_parameters, self.fits[name].ks))

    @property
    def best(self) -> str:
        """The first of `closest`; "" if they are all families, so that the sample cannot tell them apart."""
        return self.closest[0] if 0 < len(self.closest) < len(FAMILIES) else ""


def rows_of(
    trace: Gradients, name: str, steps: Sequence[int], case: Case, *, sample: int, seed: int, how: Estimator
) -> Iterator[Row]:
    """Yield the rows of rank 0's gradient at each index in `steps`: the whole, then each layer.

    Args:
        trace: the recorded gradients.
        name: the trace's name in tables.
        steps: indices of the trace.
        case: the reducer whose error feedback is replayed from the trace's first step, without a residual
            there.
        sample: maximum number of elements that a fit uses.
        seed: seed of the sample.
        how: the estimator.

    Raises:
        ValueError: the reducer keeps no residual, or a gradient has values that are not finite.
    """
    for step, memory, signal_N in signals(trace, steps, case):
        of = (name, trace.number(step), memory)
        yield measured(signal_N, *of, WHOLE, sample=sample, seed=seed, how=how)
        for layer in trace.layers:
            part_N = signal_N[layer.start : layer.stop]
            if part_N.numel():
                yield measured(part_N, *of, layer.name, sample=sample, seed=seed, how=how)


def signals(trace: Gradients, steps: Sequence[int], case: Case) -> Iterator[tuple[int, str, Tensor]]:
    """Yield rank 0's gradient g at each index, without error feedback and with it, as g + r."""
    wire = LoopbackWire(torch.device("cpu"))
    reducer = case.make(**case.options)
    if reducer.memory == "none" or reducer.needs_squares:
        why = "keeps no residual" if reducer.memory == "none" else "needs squared gradients"
        raise ValueError(f"--reducer {case.name}: it {why}; give another, as topk:density=0.001")
    layout = Layout.of([("trace", (trace.elements,))], reducer.grouping)
    feedback = ErrorFeedback(reducer, layout, memory="residual")
    reducer.begin_epoch(0, 0.1, wire)
    for step in range(max(steps) + 1):
        gradient_N = trace.gradient(step, 0)
        if not bool(gradient_N.isfinite().all()):
            raise ValueError(
                f"{trace.name}: the gradient of step {trace.number(step)} has values that are not finite"
            )
        if step in steps:
            assert feedback.residual_N is not None
            yield step, WITHOUT, gradient_N
            yield step, WITH, gradient_N + feedback.residual_N
        feedback(gradient_N.clone(), wire)


def measured(
    part_N: Tensor,
    trace: str,
    step: int,
    memory: str,
    layer: str,
    *,
    sample: int,
    seed: int,
    how: Estimator,
) -> Row:
    """Fit every family to the nonzero elements of a part of a gradient, or to a sample of them."""
    found_N = part_N[part_N != 0]
    zeros = 1 - found_N.numel() / part_N.numel()
    if found_N.numel() > sample:
        generator = torch.Generator().manual_seed(seed)
        found_N = found_N[torch.randperm(found_N.numel(), generator=generator)[:sample]]
    x_U = found_N.numpy().astype(numpy.float64)
    sorted_U = numpy.sort(numpy.abs(x_U))
    fits = {}
    for family in FAMILIES:
        fitted = fit(family, x_U, how)
        if fitted is not None:
            fits[family] = Fit(fitted, ks_distance(fitted, sorted_U), _selected(fitted, sorted_U))
    return Row(
        trace=trace,
        step=step,
        memory=memory,
        layer=layer,
        elements=part_N.numel(),
        used=len(x_U),
        zeros=zeros,
        positive=float((x_U > 0).mean()) if len(x_U) else math.nan,
        energy=tuple(_energy(sorted_U, share) for share in SHARES),
        fits=fits,
        curve=_curve(sorted_U) if layer == WHOLE and fits else None,
    )


def ks_distance(fitted: Fitted, sorted_U: Array) -> float:
    """The largest difference between the distribution function of |g| and that of its sorted magnitudes (U).

    The fit has been made to the same elements; from 1,000 of them on, that lowers the distance by much less
    than the sampling error.
    """
    num = len(sorted_U)
    below_U = 1 - fitted.above(sorted_U)
    steps_U = numpy.arange(num + 1) / num
    return float(max((steps_U[1:] - below_U).max(), (below_U - steps_U[:-1]).max()))


def _selected(fitted: Fitted, sorted_U: Array) -> tuple[float, ...]:
    thresholds = fitted.exceeded(numpy.array(SHARES))
    counts = len(sorted_U) - numpy.searchsorted(sorted_U, thresholds, side="right")
    return tuple(float(count / len(sorted_U) / share) for count, share in zip(counts, SHARES, strict=True))


def _energy(sorted_U: Array, share: float) -> float:
    """Share of the squared norm that this share of the elements, the largest ones, holds."""
    if not len(sorted_U):
        return math.nan
    relative_U = (sorted_U / sorted_U[-1]) ** 2
    largest = max(1, round(share * len(sorted_U)))
    return float(relative_U[-largest:].sum() / relative_U.sum())


def _curve(sorted_U: Array) -> tuple[Array, Array]:
    """Shares from nearly all down to the largest element, evenly in the logarithm, and their magnitudes."""
    num = len(sorted_U)
    last = min(POINTS, num)
    ranks = numpy.unique(numpy.round(numpy.geomspace(1, max(1, 0.95 * num), last)).astype(int))[::-1]
    # The largest element is the quantile that a share of ½/U exceeds, the next that of 1½/U.
    return (ranks - 0.5) / num, sorted_U[num - ranks]
