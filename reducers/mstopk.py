"""MSTopK: sends exactly k elements, selected by bisecting two thresholds (Shi et al., MLSys 2021)."""
# N = elements of the flat vector, K = elements selected, C = candidates

import math
from itertools import pairwise
from typing import Unpack

import torch
from torch import Tensor

from sage.reduction import Sparsifier, SparsifierOptions, Wire, check_fraction, generator, ops

from ._by_threshold import NARROW
from ._signal import Signal, reaches
from .topk import num_kept

FEW = 64
"""Number of elements up to which a list is copied in pieces."""


class MSTopK(Sparsifier):
    """Send k = max(1, ⌊d·n⌋) elements of each group: those above t1, and a run of those between t2 and t1.

    Let t = mean + ρ·(max − mean) of the magnitudes. ρ in (0, 1) is bisected `bisections` times (Algorithm 1).
    t1 is the smallest t tried that at most k elements reach; t2 is the largest t tried that more than k
    elements reach (0 if there is none). All elements that reach t1 are sent. The elements missing to k are a
    run, starting at a random position, of the elements in [t2, t1) in index order. Exactly k elements are
    always sent: k̂/k = 1. More rounds bring the selection closer to the k largest. If a group is constant or
    not finite, its k largest elements are sent. Payload bytes per rank: 8 (or 6) per element sent.

    This is the paper's algorithm as implemented in the utility study's code (Agarwal et al., 2022), which
    makes 100 rounds, and 20 in its hook; the default of 30 is ours. The hook in that code writes the values
    to the first k positions of the vector, a fault that is not copied.

    Args:
        density: Share of each group's elements to send, in (0, 1].
        bisections: Number of bisection rounds, 1 or more.
        sample_seed: Seed of the runs' start positions; each rank and step draws its own.

    Raises:
        ValueError: if an option is out of range.
    """

    decides_by = "group"
    step: Tensor

    def __init__(
        self,
        *,
        density: float = 0.01,
        bisections: int = 30,
        sample_seed: int = 0,
        **options: Unpack[SparsifierOptions],
    ) -> None:
        super().__init__(**options)
        self.density = check_fraction("density", density)
        if bisections < 1:
            raise ValueError(f"bisections={bisections!r}: expected 1 or more")
        self._bisections, self._seed = bisections, sample_seed
        self._threshold = 0.0
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def select(self, signal_N: Tensor, wire: Wire) -> Tensor:
        return self.take(signal_N, None, wire)[1].long()

    def take(self, grad_N: Tensor, residual_N: Tensor | None, wire: Wire) -> tuple[Tensor, Tensor]:
        rng = generator(self._seed, int(self.step), wire.stream)
        self.step += 1
        self._threshold = 0.0
        signal = Signal(grad_N, residual_N, self.layout)
        counts = [num_kept(self.density, n) for n in signal.sizes]
        # k or more elements reach t if the k-th largest does, and more than k if the next one does.
        group_moments = signal.moments([(k, k + 1) for k in counts])
        brackets = [
            (0.0, 0.0) if k == n else self._bracket(moments, n, signal.dtype)
            for moments, n, k in zip(group_moments, signal.sizes, counts, strict=True)
        ]
        # t1 itself where exactly k elements reach it: none is then missing.
        limits = [
            math.inf
            if bracket is None
            else bracket[0]
            if reaches(moments.ranked[0], bracket[0], signal.dtype)
            else bracket[1]
            for bracket, moments in zip(brackets, group_moments, strict=True)
        ]
        values, at = signal.take_above(limits)
        for group, (bracket, n, k) in enumerate(zip(brackets, signal.sizes, counts, strict=True)):
            if bracket is None:  # constant, or not a number
                signal.put_back(values[group], at[group])
                values[group], at[group] = signal.take_largest(group, k)
                bracket = (0.0, float(values[group].abs().min()))
            elif at[group].numel() > k:
                values[group], at[group] = _settled(signal, values[group], at[group], k, bracket[0], rng)
            self._threshold += bracket[1] * n / self.layout.numel if n else 0.0
        return signal.sent(values, at, self.dtype)

    def _bracket(self, moments: ops.Moments, n: int, dtype: torch.dtype) -> tuple[float, float] | None:
        mean, most = moments.absolute / n, moments.most
        if not most > (1 + NARROW) * mean:
            return None
        low, high, t1, t2 = 0.0, 1.0, math.inf, 0.0
        for _ in range(self._bisections):
            ratio = (low + high) / 2
            threshold = mean + ratio * (most - mean)
            if reaches(moments.ranked[1], threshold, dtype):
                low, t2 = ratio, threshold
            else:
                high, t1 = ratio, threshold
        return t1, t2

    def report(self) -> dict[str, float]:
        return {"threshold": self._threshold, "density_asked": self.density}


def _settled(
    signal: Signal, own_C: Tensor, at_C: Tensor, k: int, t1: float, rng: torch.Generator
) -> tuple[Tensor, Tensor]:
    """k of the candidates: all that reach t1 and a run of the others, which are returned to the signal."""
    run_C = (own_C.abs() < t1).nonzero().view(-1)
    missing = k - (own_C.numel() - run_C.numel())
    start = int(torch.randint(run_C.numel() - missing + 1, (), generator=rng))
    left = torch.cat((run_C[:start], run_C[start + missing :]))
    signal.put_back(own_C[left], at_C[left])
    return without(own_C, left), without(at_C, left)


def without(x_C: Tensor, left: Tensor) -> Tensor:
    """x without the elements at some indices, which are few in most cases.

    >>> without(torch.tensor([5, 6, 7, 8]), torch.tensor([0, 2]))
    tensor([6, 8])
    """
    if left.numel() > FEW:
        return x_C[torch.ones(x_C.numel(), dtype=torch.bool, device=x_C.device).index_fill_(0, left, False)]
    at = [-1, *left.tolist(), x_C.numel()]
    return torch.cat([x_C[before + 1 : after] for before, after in pairwise(at)])


REDUCER = MSTopK
