"""SIDCo: sends magnitudes above a fitted distribution's quantile (Abdelmoniem et al., MLSys 2021)."""
# N = elements of the flat vector or a group, K = elements above a stage's threshold, G = groups, S = sampled

import math
from collections.abc import Sequence
from typing import Literal, Unpack

import torch
from scipy.special import gammaincinv
from torch import Tensor

from sage.reduction import Layout, SparsifierOptions, Wire, ops

from ._by_threshold import NARROW, ByThreshold
from ._signal import Signal

EVERY, TOLERANCE = 5, 0.2
"""Steps between two adaptations, and the deviation of k̂/k from 1 that triggers one."""
MOVE, LEAST, MOST = 0.05, 0.05, 0.5
"""Step, minimum and maximum of the first stage's share when it adapts."""
NEAR, BELOW = 16_384, 0.93
"""Elements of the sample that predicts the first stage's threshold, and the share of it used as limit."""


class SIDCo(ByThreshold):
    """Send |a| ≥ λ, the quantile of a sparsity-inducing distribution fitted to |a|, in M stages.

    The first stage keeps a share δ1 of the elements (0.25; d if M = 1 or d ≥ δ1). Each later stage fits the
    elements kept by the previous one, minus the smallest of them, and keeps (d/δ1)^(1/(M−1)) of these. With
    `stages=0`, as in the authors' code, each stage keeps δ1 and the last one keeps the rest: at d = 0.05 the
    shares are 0.25, 0.25 and 0.8. With mean μ, variance σ² and the share δ to keep, λ is

        exponential          −μ ln δ
        generalised Pareto   α(1 − δ^κ)/κ,  κ = ½(μ²/σ² − 1),  α = ½ μ(μ²/σ² + 1)
        gamma                −β(ln δ + ln Γ(α)),  β = μ/α,
                             α = (3 − s + √((s − 3)² + 24 s))/(12 s),  s = ln μ − mean ln|a|

    `E` is exponential in all stages, `P` generalised Pareto, and `GP` gamma, then generalised Pareto. For
    gamma, `quantile="exact"` uses the distribution's own quantile β·P⁻¹(α, 1 − δ), and `closed` the paper's
    approximation of it for small α. Two points are ours and neither in the paper nor in its code. Exact zeros
    are excluded from the fit, because 70 % of zeros mislead every fit otherwise; d is then k over the number
    of nonzero elements. Elements are compared by ≥, where the code compares by >.

    M starts at 1. Every 5 steps, if the mean e of k̂/k over them differs from 1 by more than 0.2, M changes
    by one within [1, ⌈log2(1/d)⌉], separately on each rank and for each group. Let e₀ be the previous e,
    initially ∞:

    - `paper` (the paper's rule, −1 in its code): down if e > 1, up if e < 1. If one stage sends too many, M
      stays at 1.
    - `worse` (rule −2 of its code): as `paper`, but the opposite direction if |e − 1| > |e₀ − 1|.
    - `return` (rule −3 of its code): as `paper`, but the opposite direction unless e has moved back from
      outside the band: e₀ > 1.2 and e < e₀, or e₀ < 0.8 and e > e₀.
    - `flip` (ours, the default): the direction of the last change, initially up, or the opposite direction if
      |e − 1| > |e₀ − 1|. At an end of the range it reverses; the other rules stay there.

    The reversal in `worse` and `return` applies to one change; the next starts from the sign of its own
    error.

    Achieved over target count, k̂/k, is within 20 % of 1 on normal, Laplace, Student-t(4) and 70 %-zero
    vectors at d = 0.1, 0.01 and 0.001, except for 2.5 under `E` on Student-t(4) at 0.001. With the paper's
    adaptation rule it is 2.3 (`E`) and 3.0 (`GP`) there, and up to 6.9 (`P`, normal, 0.001); with one stage,
    0.00 (`E`, normal, 0.001) to 6.9; with the paper's approximation of the gamma quantile, up to 1.52.
    (Measured: docs/explanation/selection.md.)

    Args:
        fit: Distributions: exponential (`E`), gamma then generalised Pareto (`GP`), or generalised Pareto
            (`P`).
        stages: Fixed number of stages M, 1 or more; 0: ⌈ln d/ln δ1⌉ stages, which keep δ1 each and the last
            the rest; none: M adapts.
        adapt: Rule by which M adapts: ours (`flip`), the paper's, or one of the two others in the authors'
            code.
        adjust_first: Whether δ1 adapts too, within [0.05, 0.5]: it decreases by 0.05 if too many elements
            were sent, and increases by 0.05 otherwise.
        quantile: Gamma quantile: the distribution's own (`exact`), or the paper's closed form (`closed`).

    Raises:
        ValueError: if an option is out of range.
    """

    decides_by = "group"

    stages_G: Tensor
    direction_G: Tensor
    first_G: Tensor
    total_G: Tensor
    last_G: Tensor
    step: Tensor

    def __init__(
        self,
        *,
        density: float = 0.01,
        fit: Literal["E", "GP", "P"] = "E",
        stages: int | None = None,
        adapt: Literal["flip", "paper", "worse", "return"] = "flip",
        adjust_first: bool = False,
        quantile: Literal["exact", "closed"] = "exact",
        **options: Unpack[SparsifierOptions],
    ) -> None:
        super().__init__(density=density, **options)
        for name, value, allowed in (
            ("fit", fit, ("E", "GP", "P")),
            ("adapt", adapt, ("flip", "paper", "worse", "return")),
            ("quantile", quantile, ("exact", "closed")),
        ):
            if value not in allowed:
                raise ValueError(f"{name}={value!r}: expected {', '.join(allowed)}")
        if stages is not None and stages < 0:
            raise ValueError(
                f"stages={stages!r}: expected 1 or more, 0 to derive the number from the density, or none"
            )
        self._fit, self._stages, self._adapt, self._quantile = fit, stages, adapt, quantile
        self._adjusts_first = adjust_first
        self._used: list[int] = []

    def bind(self, layout: Layout) -> None:
        super().bind(layout)
        num = len(layout.groups)
        self.register_buffer("stages_G", torch.ones(num, dtype=torch.int64))
        self.register_buffer("direction_G", torch.ones(num, dtype=torch.int64))
        self.register_buffer("first_G", torch.full((num,), 0.25, dtype=torch.float64))
        self.register_buffer("total_G", torch.zeros(num, dtype=torch.float64))
        self.register_buffer("last_G", torch.full((num,), math.inf, dtype=torch.float64))
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def estimate(self, signal: Signal, counts: Sequence[int]) -> list[float | None]:
        limits = [self._near(signal, group, k) for group, k in enumerate(counts)]
        moments, lists = signal.moments_above(limits)
        return [
            self._fitted(signal, group, k, group_moments, list_K, limit)
            for group, (k, group_moments, list_K, limit) in enumerate(
                zip(counts, moments, lists, limits, strict=True)
            )
        ]

    def _near(self, signal: Signal, group: int, k: int) -> float:
        """A limit that the first stage's threshold probably exceeds; infinity if no later stage is expected.

        Elements above it are set aside in the pass that computes the moments. It does not change the result.
        All elements of a small group are set aside.
        """
        if signal.sizes[group] < 4 * NEAR:
            return 0.0
        sample_S = signal.sample(group, num=NEAR)
        n, size = signal.sizes[group], sample_S.numel()
        (moments,) = ops.moments(sample_S, None, [0, size])
        if k * size >= n * moments.nonzero:
            return math.inf
        density, first = k * size / n / moments.nonzero, float(self.first_G[group])
        if density >= first or self._num_stages(group, density, first) == 1:
            return math.inf
        near = BELOW * self._first(moments, sample_S, first)
        return near if near > 0 else math.inf

    def _fitted(
        self, signal: Signal, group: int, k: int, moments: ops.Moments, list_K: Tensor, limit: float
    ) -> float | None:
        """λ of a group; `list_K` holds its magnitudes from `limit` on, and is overwritten."""
        num = moments.nonzero
        if k >= num:
            return None
        density, first = k / num, float(self.first_G[group])
        stages = 1 if density >= first else self._num_stages(group, density, first)
        self._used.append(stages)
        x_N = signal.of(group)
        threshold = self._first(moments, x_N, density if stages == 1 else first)
        for share in shares(density, first, stages, even=self._stages != 0)[1:]:
            if not threshold > 0:  # not a number, too
                return None
            if threshold < limit:
                _, (list_K,) = ops.moments_above(x_N, None, [0, x_N.numel()], [threshold])
                limit = threshold
            excess = ops.excess(list_K, threshold)
            list_K, count = excess.left_K, excess.left_K.numel()
            if count < 2:
                return None
            mean, square = excess.total / count, excess.square / count
            threshold = excess.least + tail(mean, square, share, pareto=self._fit != "E")
        return threshold

    def _num_stages(self, group: int, density: float, first: float) -> int:
        if self._stages == 0:
            # Rounded to 9 digits first, so that a density that is a power of δ1 needs no extra stage.
            return max(1, math.ceil(round(math.log(density) / math.log(first), 9)))
        return self._stages or int(self.stages_G[group])

    def _first(self, moments: ops.Moments, x_N: Tensor, share: float) -> float:
        """λ of the first stage, given the share of the nonzero elements to keep."""
        mean, square = moments.absolute / moments.nonzero, moments.square / moments.nonzero
        if self._fit != "GP":
            return tail(mean, square, share, pareto=self._fit == "P")
        log = float(x_N[x_N != 0].abs().log_().mean())
        return gamma_tail(mean, log, share, exact=self._quantile == "exact")

    def record_count(self, group: int, k: int, count: int) -> None:
        self.total_G[group] += count / k if k else 1.0

    def take(self, grad_N: Tensor, residual_N: Tensor | None, wire: Wire) -> tuple[Tensor, Tensor]:
        self._used.clear()
        selection = super().take(grad_N, residual_N, wire)
        self.step += 1
        if int(self.step) % EVERY == 0:
            for group, total in enumerate(self.total_G.tolist()):
                self._learn(group, total / EVERY, float(self.last_G[group]))
            self.total_G.zero_()
        return selection

    def _learn(self, group: int, achieved: float, before: float) -> None:
        """Adapt to the mean k̂/k of the last steps; `before` is that of the steps before them."""
        self.last_G[group] = achieved
        if abs(achieved - 1) <= TOLERANCE:
            return
        if self._adjusts_first:
            self.first_G[group] += MOVE if achieved < 1 else -MOVE
            self.first_G.clamp_(LEAST, MOST)
        most = max(1, math.ceil(math.log2(1 / self._target_density)))
        if self._adapt != "flip":
            self.direction_G[group] = 1 if achieved < 1 else -1
        if not self._keeps_direction(achieved, before):
            self.direction_G[group] *= -1
        stages = int(self.stages_G[group] + self.direction_G[group])
        if self._adapt == "flip" and not 1 <= stages <= most:
            self.direction_G[group] *= -1
            stages = int(self.stages_G[group] + self.direction_G[group])
        self.stages_G[group] = max(1, min(most, stages))

    def _keeps_direction(self, achieved: float, before: float) -> bool:
        if self._adapt == "paper":
            return True
        if self._adapt == "return":
            return (before > 1 + TOLERANCE and achieved < before) or (
                before < 1 - TOLERANCE and achieved > before
            )
        return abs(achieved - 1) <= abs(before - 1)

    def report(self) -> dict[str, float]:
        return {**super().report(), "stages": sum(self._used) / max(1, len(self._used))}


def shares(density: float, first: float, stages: int, *, even: bool) -> list[float]:
    """Share that each of M stages keeps: `first`, then equal shares, or `first` repeatedly, then the rest.

    >>> [round(share, 3) for share in shares(0.05, 0.25, 3, even=True)]
    [0.25, 0.447, 0.447]
    >>> [round(share, 3) for share in shares(0.05, 0.25, 3, even=False)]
    [0.25, 0.25, 0.8]
    """
    if stages == 1:
        return [density]
    if even:
        return [first] + [(density / first) ** (1 / (stages - 1))] * (stages - 1)
    return [first] * (stages - 1) + [density / first ** (stages - 1)]


def tail(mean: float, square: float, share: float, *, pareto: bool) -> float:
    """Value that a given share of an exponential or generalised Pareto distribution exceeds.

    Args:
        mean: Mean of the values.
        square: Mean of their squares.
        share: The share, in (0, 1].
        pareto: Whether the distribution is generalised Pareto; if not, exponential.

    Returns:
        The value; NaN if the variance is too small or not finite.
    """
    variance = square - mean**2
    if not NARROW * mean**2 < variance < math.inf:
        return math.nan
    if not pareto:
        return -mean * math.log(share)
    shape = (mean**2 / variance - 1) / 2
    scale = mean * (mean**2 / variance + 1) / 2
    # (1 − δ^κ)/κ, which is −ln δ at κ = 0, computed without cancellation near κ = 0.
    return scale * (-math.expm1(shape * math.log(share)) / shape if shape else -math.log(share))


def gamma_tail(mean: float, log: float, share: float, *, exact: bool) -> float:
    """Value that a given share of a gamma distribution exceeds.

    Args:
        mean: Mean of the values.
        log: Mean of their logarithms.
        share: The share, in (0, 1].
        exact: Whether to use the distribution's own quantile; if not, the paper's closed form.

    Returns:
        The value; NaN if the values are equal or not finite.
    """
    s = math.log(mean) - log if 0 < mean < math.inf else math.nan
    if not NARROW < s < math.inf:
        return math.nan
    shape = (3 - s + math.sqrt((s - 3) ** 2 + 24 * s)) / (12 * s)
    scale = mean / shape
    if exact:
        return scale * float(gammaincinv(shape, 1 - share))
    return -scale * (math.log(share) + math.lgamma(shape))


REDUCER = SIDCo
