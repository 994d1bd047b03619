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
HEAVY = 0.25
"""A bin with a larger share of the elements wanted is not interpolated in."""


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
    infinity = int(ops.magnitude_bits(x_C.new_tensor(math.inf)))
    least = bits_C.kthvalue(bits_C.numel() - k + 1).values.clamp_(1, infinity)
    return float(least.view(x_C.dtype))


def _agreed(x_C: Tensor, wanted: float, agree: Agree, first: int, num: int) -> float | None:
    counts_B = agree(ops.magnitude_histogram(x_C, first, num).float())
    return quantile(counts_B.tolist(), first, wanted, x_C.dtype)


def quantile(counts_B: Sequence[float], first: int, wanted: float, dtype: torch.dtype) -> float | None:
    """The magnitude that `wanted` elements lie above, from the counts of bins `first`, `first` + 1, ...

    Interpolated within its bin; of a bin that has a quarter of what is wanted, or more, as ties have, it is
    the edge that comes nearer, but never one that nothing lies above. None where the bin is not among those
    counted, or is the last of fewer than there are, of which nobody knows how far it reaches.

    >>> first = ops.bin_of(1.0, torch.float32)
    >>> round(quantile([9, 10, 90, 0], first, 95, torch.float32), 3)  # between 1.03125 and 1.0625
    1.046
    """
    above = 0.0
    for number in range(len(counts_B) - 1, -1, -1):
        inside = counts_B[number]
        total = above + inside
        if inside == 0 or total < wanted:
            above = total
            continue
        if number == len(counts_B) - 1 and first + len(counts_B) < ops.num_bins(dtype):
            return None
        limits = torch.finfo(dtype)
        lower = max(ops.bin_edge(first + number, dtype), limits.smallest_normal * limits.eps)
        upper = ops.bin_edge(first + number + 1, dtype)
        if inside > HEAVY * wanted or math.isinf(upper):
            return upper if above and total - wanted > wanted - above else lower
        # Between its edges the tail falls as a power of the magnitude.
        return lower * (upper / lower) ** (math.log(total / wanted) / math.log(total / above))
    return None
