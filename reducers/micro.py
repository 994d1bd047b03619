"""MiCRO: each rank selects above a common threshold in its own part of the vector (Yoon & Oh, HiPC 2023)."""
# N = elements of the flat vector, W = world size, k = target number of elements

import math
from typing import Annotated, Literal

import torch
from torch import Tensor

from sage.reduction import (
    Exclusive,
    ExclusiveSparsifier,
    Layout,
    Reduced,
    Start,
    Wire,
    check_start,
    common_quantile,
    dutta_threshold,
    mean_at,
    mean_of,
    ops,
    phase,
)
from sage.validate import LATER, Before

from .topk import num_kept


class Micro(ExclusiveSparsifier):
    """At step t rank r selects |a| ≥ λ in part (t + r) mod W of the vector, which has W parts of equal size.

    Let e = k'/k, where k' is the number of elements selected by all ranks together and k = ⌊density·n⌋. After
    the step λ is multiplied by

        1.005 if e > 1.1, 1.00125 if 1 < e ≤ 1.1, 0.99875 if 0.909 ≤ e < 1, 0.995 if e < 0.909

    Every rank clears its residual at all elements that any rank selected. Density 1 selects everything. The λ
    reported is the one used at this step.

    The first λ is by default (`start="gradient"`, ours) the mean over the ranks of each rank's own quantile
    of its first signal, for 8 more bytes at that step. While the mean is 0 (too few elements differ from 0)
    or not finite, only these elements are sent, and λ is set at the next step. The paper's first λ
    (`start="published"`) is 1/(2·sqrt(k)), which is made for gradients of norm 1. For larger gradients it
    sends all elements at first, and λ rises by 0.5 % per step.

    Apart from that, this is the paper's method. It differs from the authors' released code in four points.
    That code tests e > 0 instead of e > 1, and converges to 4.6 % below the target. Its factor is 0.9987, not
    0.99875. Its parts have other borders if W does not divide n; here part i begins at ⌊i·n/W⌋. If a rank
    selects nothing, that code sends a dummy element; here nothing is sent.

    Args:
        threshold: First λ, above 0; by default it follows from `start`.
        start: First λ: from the first gradient (`gradient`), or 1/(2·sqrt(k)) with the target number k of
            elements (`published`).

    Raises:
        ValueError: if an option is out of range.
    """

    threshold: Tensor
    step: Tensor

    def __init__(
        self,
        *,
        density: float = 0.01,
        threshold: float | None = None,
        start: Annotated[Start, Before("published")] = "gradient",
        values: Literal["fp32", "fp16"] = "fp32",
        mask: Annotated[Literal["signal", "momentum"], LATER] = "signal",
        mask_beta: Annotated[float, LATER] = 0.9,
    ) -> None:
        super().__init__(density=density, values=values, mask=mask, mask_beta=mask_beta)
        if threshold is not None and not 0 < threshold < math.inf:
            raise ValueError(f"threshold={threshold!r}: expected a finite number above 0")
        check_start(start)
        self._first, self._start = threshold, start
        self.register_buffer("threshold", torch.zeros((), dtype=torch.float64))
        self._used: float | None = None
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def bind(self, layout: Layout) -> None:
        super().bind(layout)
        if self._first is not None or self._start == "published":
            k = max(1, num_kept(self.density, layout.numel))
            self.threshold.fill_(self._first or dutta_threshold(1, k))

    def part(self, n: int, wire: Wire) -> tuple[int, int]:
        """(start, stop) of the part of the vector that this rank selects from at this step."""
        return Exclusive().partition(n, int(self.step), wire)

    def take(self, grad_N: Tensor, residual_N: Tensor | None, wire: Wire) -> tuple[Tensor, Tensor]:
        start, stop = self.part(grad_N.numel(), wire)
        self.step += 1
        self._used = self._decide(grad_N, residual_N, wire)
        own_P = None
        if residual_N is not None:
            own_P = residual_N[start:stop]
            residual_N[:start] += grad_N[:start]
            residual_N[stop:] += grad_N[stop:]
        values_K, at_K = ops.take_above(grad_N[start:stop], own_P, self._used, dtype=self.dtype)
        return values_K, at_K.add_(start)

    def forward(self, grad_N: Tensor, residual_N: Tensor | None, wire: Wire) -> Reduced:
        if self.is_late:
            return self.one_step_late(grad_N, residual_N, wire)
        with phase("select"):
            own_K, at_K = self.take(grad_N, residual_N, wire)
        counts, (at_M,) = wire.gather_ragged(indices=at_K)
        signal_N, keep = (grad_N, False) if residual_N is None else (residual_N, True)
        # The ranks by the part of the vector that they have selected from: their indices ascend.
        ranks = [(part - int(self.step) + 1) % wire.world_size for part in range(wire.world_size)]
        pieces, position = at_M.split(counts), ranks.index(wire.rank)
        at = [pieces[rank] for rank in ranks]
        at_U = torch.cat(at)
        if bool((at_U[1:] > at_U[:-1]).all()):
            with phase("select"):
                before_K, after_K = (
                    ops.take(signal_N, torch.cat([at_M[:0], *others]), dtype=self.dtype, keep=keep)
                    for others in (at[:position], at[position + 1 :])
                )
            reduced = mean_of(torch.cat([before_K, own_K, after_K]), at_U, wire, out_N=grad_N)
        else:  # on a wire without a network, all ranks have this rank's indices
            if keep:
                signal_N[at_K] += own_K.to(signal_N.dtype)
            at_U = ops.union(at_M, grad_N.numel())
            reduced = mean_at(signal_N, at_U, wire, dtype=self.dtype, keep=keep, out_N=grad_N)
        self.learn(counts, reduced.mean_N, wire)
        return reduced

    def learn(self, counts: list[int], mean_N: Tensor, wire: Wire) -> None:
        k = num_kept(self.density, self.layout.numel)
        if k and float(self.threshold) > 0:
            limits = torch.finfo(torch.float32)
            # λ stays a normal float32, so that the factors can still change it after many empty steps.
            self.threshold.mul_(factor(sum(counts) / k)).clamp_(limits.smallest_normal, limits.max)

    def report(self) -> dict[str, float]:
        # `learn` has already updated λ for the next step; the record needs the λ of this step.
        return {**super().report(), "threshold": self._threshold() if self._used is None else self._used}

    def _decide(self, grad_N: Tensor, residual_N: Tensor | None, wire: Wire) -> float:
        """λ of this step; in the first step, estimate it from the signal."""
        if grad_N.numel() and self.density < 1 and float(self.threshold) == 0:
            limits = torch.finfo(torch.float32)
            quantile = common_quantile(grad_N, residual_N, self.density, wire)
            if not 0 < quantile < math.inf:  # the same on all ranks
                return limits.max if quantile else limits.smallest_normal
            self.threshold.fill_(min(limits.max, max(limits.smallest_normal, quantile)))
        return self._threshold()

    def _threshold(self) -> float:
        return 0.0 if self.density == 1 else float(self.threshold)


def factor(error: float) -> float:
    """Factor for λ, given the ratio e of the number of elements selected to the target.

    >>> factor(2.0), factor(1.0), factor(0.95), factor(0.0)
    (1.005, 1.0, 0.99875, 0.995)
    """
    if error > 1:
        return 1.005 if error > 1.1 else 1.00125
    if error < 1:
        return 0.99875 if error >= 0.909 else 0.995
    return 1.0


REDUCER = Micro
