"""Hard threshold: every element of magnitude λ or more, λ fixed (Dutta et al., AAAI 2020)."""
# N = elements of the flat vector, k = elements that the density asks for

import math
from typing import Unpack

from torch import Tensor

from sage.reduction import Sparsifier, Travel, Wire, check_fraction, ops


class Threshold(Sparsifier):
    """Send |a| ≥ λ. The number of elements follows from the data and differs between ranks and steps.

    Dutta et al. compare with a fixed λ, as here. GRACE's threshold compares with the largest x, not |x|, a
    fault that is not copied. Where λ is given there is no density target, and none is reported.

    Args:
        threshold: λ, above 0; by default 1/(2·sqrt(k)), k = density·n, the value Dutta et al. suggest.
        density: Used for the default λ, and then the target that is reported; in (0, 1].
    """

    even = False

    def __init__(
        self, *, threshold: float | None = None, density: float = 0.01, **travel: Unpack[Travel]
    ) -> None:
        super().__init__(**travel)
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
        told = {"threshold": self._value(self.layout.numel)}
        return told if self._threshold is not None else {**told, "density_asked": self.density}


REDUCER = Threshold
