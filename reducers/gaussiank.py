"""Gaussian-k: sends magnitudes above a fitted normal distribution's quantile (Shi et al., 2019)."""

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Literal, Unpack

import torch

from sage.reduction import SparsifierOptions, ops

from ._by_threshold import NARROW, ByThreshold
from ._signal import Signal, reaches

RULES = {"bisect": 5, "paper": 2, "released": 2}
"""Default maximum number of corrections of each rule."""


class GaussianK(ByThreshold):
    """Send |a| ≥ λ, where λ starts at a quantile of the normal distribution with the signal's moments.

    `paper` (Shi et al., 2019, "Understanding Top-k Sparsification in Distributed Deep Learning", and its
    authors' code) uses the mean and the standard deviation of a:

        λ = μ + σ·Φ⁻¹(1 − d/2)

    While the count is outside [2k/3, 4k/3], λ is multiplied by 0.5 (too few) or 1.5 (too many), at most
    `corrections` times. μ is signed, so λ is too low for a vector with a negative mean; if λ is not above 0,
    the k largest elements are sent.

    `released` is the code of SIDCo's authors: the same rule with μ and σ of |a|. It computes a third
    correction but does not use it, so that two take effect.

    `bisect` (the default) is ours: `paper` with |μ| in place of μ. Once both too few and too many have
    occurred, λ becomes the midpoint of the two thresholds.

    Here σ divides by n and elements are compared by ≥; both codes divide by n − 1 and compare by >.

    Achieved over target count, k̂/k, of `bisect` is within 20 % of 1 on normal, Laplace, Student-t(4) and 70
    %-zero vectors at d = 0.1, 0.01 and 0.001, except for 0.76 on 70 % zeros at 0.001. Without corrections it
    is within 20 % only on normal vectors and at d = 0.1, and 2.2 to 21 elsewhere. `paper` is at 0.02 to 6.5,
    `released` at 0.01 to 37. (Measured: docs/explanation/selection.md.)

    Args:
        rule: Correction rule: ours (`bisect`), the paper's, or that of SIDCo's code (`released`).
        corrections: Maximum number of corrections of λ, 0 or more; by default 5 for `bisect`, else 2.

    Raises:
        ValueError: if an option is out of range.
    """

    decides_by = "group"

    def __init__(
        self,
        *,
        density: float = 0.01,
        rule: Literal["bisect", "paper", "released"] = "bisect",
        corrections: int | None = None,
        **options: Unpack[SparsifierOptions],
    ) -> None:
        super().__init__(density=density, **options)
        if rule not in RULES:
            raise ValueError(f"rule={rule!r}: expected {', '.join(RULES)}")
        if corrections is not None and corrections < 0:
            raise ValueError(f"corrections={corrections!r}: expected 0 or more")
        self._rule = rule
        self._corrections = RULES[rule] if corrections is None else corrections

    def estimate(self, signal: Signal, counts: Sequence[int]) -> list[float | None]:
        # Too few are fewer than ⌈2k/3⌉, too many are ⌊4k/3⌋ + 1 or more.
        ranks = [(-(-2 * k // 3), 4 * k // 3 + 1) for k in counts] if self._corrections else []
        group_moments = signal.moments(ranks)
        return [
            self._search(moments, n, k, signal.dtype)
            for moments, n, k in zip(group_moments, signal.sizes, counts, strict=True)
        ]

    def _search(self, moments: ops.Moments, n: int, k: int, dtype: torch.dtype) -> float | None:
        if k >= n:
            return None
        mean = (moments.absolute if self._rule == "released" else moments.total) / n
        mean = abs(mean) if self._rule == "bisect" else mean
        variance = moments.square / n - mean**2
        if not NARROW * mean**2 < variance < math.inf:  # constant, or not finite
            return None
        threshold = mean + math.sqrt(variance) * NormalDist().inv_cdf(1 - k / n / 2)
        low, high = 0.0, math.inf
        for _ in range(self._corrections):
            enough, excessive = (reaches(magnitude, threshold, dtype) for magnitude in moments.ranked)
            if enough and not excessive:
                break
            low, high = (threshold, high) if enough else (low, threshold)
            bracketed = self._rule == "bisect" and low > 0 and high < math.inf
            threshold = (low + high) / 2 if bracketed else threshold * (1.5 if enough else 0.5)
        return threshold


REDUCER = GaussianK
