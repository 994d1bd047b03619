"""The threshold is the tail's quantile itself, looked for where the last step's was."""
# N = elements of the vector, C = candidates, K = elements selected, B = bins

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sage import ops

from .base import Agree, Controller, alone

WINDOW = 64
"""Bins that ranks which agree count at first: two octaves."""


class Quantile(Controller):
    """λ is the k-th largest |a|, k = d*·n, but above 0: zeros are never selected.

    The last λ says where to look: elements above it, less a margin, are the candidates, and λ is the k-th
    largest of these, which are few. Only where there are fewer than k (at the first step, after a fall in
    scale, when the target has risen) the whole vector is looked through. Either way λ is the same: what is
    remembered saves work and changes no result.

    Agreement: the ranks average their candidates' histograms, 64 numbers (all bins where the whole vector is
    looked through), and interpolate in the bin that the quantile of all ranks' elements together is in.

    Args:
        margin: How far below the last λ candidates begin, as a share of it.
    """

    def __init__(self, *, threshold: float | None = None, seed: int = 0, margin: float = 0.1) -> None:
        super().__init__(threshold=threshold, seed=seed)
        self._margin = margin

    def select(self, signal_N: Tensor, density: float, agree: Agree = alone) -> Tensor:
        n, dtype = signal_N.numel(), signal_N.dtype
        if n == 0:
            return super().select(signal_N, density, agree)
        find = _exact if agree is alone else _agreed
        threshold = None
        if int(self.step):
            low = ops.bin_of(float(self.threshold) * (1 - self._margin), dtype)
            at_C = ops.select_above(signal_N, ops.bin_edge(low, dtype))
            candidates_C = signal_N[at_C]
            threshold = find(candidates_C, density * n, agree, low, WINDOW)
        if threshold is None:  # and this on all ranks alike, where they agree
            at_C, candidates_C = torch.arange(n, device=signal_N.device), signal_N
            threshold = find(candidates_C, density * n, agree, 0, ops.num_bins(dtype))
        assert threshold is not None
        self.threshold.fill_(threshold)
        self.step += 1
        return at_C[ops.select_above(candidates_C, threshold)]


def _exact(x_C: Tensor, wanted: float, agree: Agree, first: int, num: int) -> float | None:
    """The magnitude of the last of so many elements that are wanted; None where there are fewer."""
    k = max(1, math.floor(wanted + 1e-9))
    if x_C.numel() < k:
        return None
    bits_C = ops.magnitude_bits(x_C)
    least = bits_C.kthvalue(bits_C.numel() - k + 1).values.clamp_(min=1)
    return float(least.view(x_C.dtype))


def _agreed(x_C: Tensor, wanted: float, agree: Agree, first: int, num: int) -> float | None:
    counts_B = agree(ops.magnitude_histogram(x_C, first, num).float())
    return quantile(counts_B.tolist(), first, wanted, x_C.dtype)


def quantile(counts_B: Sequence[float], first: int, wanted: float, dtype: torch.dtype) -> float | None:
    """The magnitude that `wanted` elements lie above, from the counts of bins `first`, `first` + 1, ...

    None where that bin is not among those counted, or is the last of fewer than there are, of which nobody
    knows how far it reaches.

    >>> quantile([4, 4, 2], ops.bin_of(1.0, torch.float32), 5, torch.float32)  # from 1, 1.03125, 1.0625 up
    1.0384...
    """
    above = 0.0
    for number in range(len(counts_B) - 1, -1, -1):
        inside = counts_B[number]
        if inside == 0 or above + inside < wanted:
            above += inside
            continue
        if number == len(counts_B) - 1 and first + len(counts_B) < ops.num_bins(dtype):
            return None
        limits = torch.finfo(dtype)
        lower = max(ops.bin_edge(first + number, dtype), limits.smallest_normal * limits.eps)
        upper = ops.bin_edge(first + number + 1, dtype)
        if math.isinf(upper):
            return lower
        if above == 0:
            return lower + (upper - lower) * (inside - wanted) / inside
        # Between its edges the tail falls as a power of the magnitude.
        part = math.log((above + inside) / wanted) / math.log((above + inside) / above)
        return lower * (upper / lower) ** part
    return None
