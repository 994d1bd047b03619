"""Hard threshold: sends every element of magnitude λ or more, with fixed λ (Dutta et al., AAAI 2020)."""
# N = elements of the flat vector, k = target number of elements

import math
from typing import Annotated, Unpack

import torch
from torch import Tensor

from sage.reduction import (
    Sparsifier,
    SparsifierOptions,
    Start,
    Wire,
    check_fraction,
    check_start,
    dutta_threshold,
    estimated_quantile,
    ops,
)
from sage.validate import Before


class Threshold(Sparsifier):
    """Send |a| ≥ λ. The number of elements depends on the data and differs between ranks and steps.

    Dutta et al. compare with a fixed λ, as here. GRACE's threshold compares with the largest x, not |x|, a
    fault that is not copied. If λ is given, there is no target density, and none is reported.

    Without a given λ, each rank by default (`start="gradient"`, ours) sets its λ once, to the magnitude that
    a share `density` of its first signal reaches. While that is 0 (too few elements differ from 0) or not
    finite, only these elements are sent, and λ is set at the next step. Dutta et al. suggest
    λ = 1/(2·sqrt(k)) with k = density·n (`start="published"`), which is made for gradients of
    norm 1. For larger gradients all elements are sent.

    Args:
        threshold: Threshold λ, above 0; by default it follows from `start` and `density`.
        density: Share in (0, 1] from which the default λ follows; it is then also the reported target
            density.
        start: Default λ: from the first gradient (`gradient`), or 1/(2·sqrt(k)) (`published`).

    Raises:
        ValueError: if an option is out of range.
    """

    even = False
    first_threshold: Tensor

    def __init__(
        self,
        *,
        threshold: float | None = None,
        density: float = 0.01,
        start: Annotated[Start, Before("published")] = "gradient",
        **options: Unpack[SparsifierOptions],
    ) -> None:
        super().__init__(**options)
        if threshold is not None and not 0 < threshold < math.inf:
            raise ValueError(f"threshold={threshold!r}: expected a finite number above 0")
        check_start(start)
        self._threshold = threshold
        if threshold is not None:
            self.decides_by = "element"
        self.density = check_fraction("density", density)
        self._asks = threshold is None and start == "gradient" and density < 1
        if self._asks:
            self.register_buffer("first_threshold", torch.zeros((), dtype=torch.float64))

    def _value(self, n: int) -> float:
        if self._threshold is not None:
            return self._threshold
        if self._asks:
            return float(self.first_threshold)
        return 0.0 if self.density == 1 else dutta_threshold(self.density, n)

    def take(self, grad_N: Tensor, residual_N: Tensor | None, wire: Wire) -> tuple[Tensor, Tensor]:
        threshold = self._value(grad_N.numel())
        if self._asks and threshold == 0 and grad_N.numel():
            quantile, limits = (
                estimated_quantile(grad_N, residual_N, self.density),
                torch.finfo(torch.float32),
            )
            threshold = min(limits.max, max(limits.smallest_normal, quantile))
            if 0 < quantile < math.inf:
                self.first_threshold.fill_(threshold)
        return ops.take_above(grad_N, residual_N, threshold, dtype=self.dtype)

    def report(self) -> dict[str, float]:
        report = {"threshold": self._value(self.layout.numel)}
        return report if self._threshold is not None else {**report, "density_asked": self.density}


REDUCER = Threshold
