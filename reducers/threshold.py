"""Hard threshold: sends every element of magnitude λ or more, with fixed λ (Dutta et al., AAAI 2020)."""
# N = elements of the flat vector, k = target number of elements

import math
from typing import Unpack

from torch import Tensor

from sage.reduction import Sparsifier, SparsifierOptions, Wire, check_fraction, ops


class Threshold(Sparsifier):
    """Send |a| ≥ λ. The number of elements depends on the data and differs between ranks and steps.

    Dutta et al. compare with a fixed λ, as here. GRACE's threshold compares with the largest x, not |x|, a
    fault that is not copied. If λ is given, there is no target density, and none is reported.

    Args:
        threshold: Threshold λ, above 0; by default 1/(2·sqrt(k)) with k = density·n, the value Dutta et al.
            suggest.
        density: Share in (0, 1] from which the default λ follows; it is then also the reported target
            density.

    Raises:
        ValueError: if an option is out of range.
    """

    even = False

    def __init__(
        self, *, threshold: float | None = None, density: float = 0.01, **options: Unpack[SparsifierOptions]
    ) -> None:
        super().__init__(**options)
        if threshold is not None and not 0 < threshold < math.inf:
            raise ValueError(f"threshold={threshold!r}: expected a finite number above 0")
        self._threshold = threshold
        self.density = check_fraction("density", density)

    def _value(self, n: int) -> float:
        if self._threshold is not None:
            return self._threshold
        return 0.0 if self.density == 1 else 1 / (2 * math.sqrt(max(1.0, self.density * n)))

    def take(self, grad_N: Tensor, residual_N: Tensor | None, wire: Wire) -> tuple[Tensor, Tensor]:
        return ops.take_above(grad_N, residual_N, self._value(grad_N.numel()), dtype=self.dtype)

    def report(self) -> dict[str, float]:
        report = {"threshold": self._value(self.layout.numel)}
        return report if self._threshold is not None else {**report, "density_asked": self.density}


REDUCER = Threshold
