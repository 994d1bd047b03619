"""The threshold is the tail's quantile itself, looked for where the last step's was."""
# N = elements of the vector, C = candidates, K = elements selected, B = bins

import math

import torch
from torch import Tensor

from sage import ops

from .base import Agree, Controller, alone

WINDOW = 64
"""Bins that ranks which agree count at a time: at first two octaves, then a part of one bin."""
FINE = 0.05
"""A bin is fine enough when it holds no larger share of the elements wanted."""


class Quantile(Controller):
    """λ is the k-th largest |a|, k = d*·n, but above 0: zeros are never selected.

    The last λ says where to look: elements above it, less a margin, are the candidates, and λ is the k-th
    largest of these, which are few. Only where there are fewer than k (at the first step, after a fall in
    scale, when the target has risen) the whole vector is looked through. Either way λ is the same: what is
    remembered saves work and changes no result.

    Agreement: λ is that of all ranks' elements together, to within a few hundredths of the target. The ranks
    average histograms of their candidates, 64 numbers (or 8,192, where the whole vector is looked through),
    and then of the bin that the quantile is in, until that is fine enough, or all its elements are the same.

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
        found = None
        if int(self.step):
            low = bits_of(float(self.threshold) * (1 - self._margin), dtype)
            at_C = ops.select_above(signal_N, ops.magnitude(low, dtype))
            found = self._among(signal_N[at_C], at_C, density * n, agree, low)
        if found is None:  # and this on all ranks alike, where they agree
            at_N = torch.arange(n, device=signal_N.device)
            found = self._among(signal_N, at_N, density * n, agree, None)
        assert found is not None
        self.step += 1
        return found

    def _among(
        self, x_C: Tensor, at_C: Tensor, wanted: float, agree: Agree, low: int | None
    ) -> Tensor | None:
        """Those of the candidates that are selected; None where the quantile lies below them."""
        threshold = quantile(x_C, wanted, agree, low)
        if threshold is None:
            return None
        self.threshold.fill_(threshold)
        return at_C[ops.select_above(x_C, threshold)]


def quantile(x_C: Tensor, wanted: float, agree: Agree = alone, low: int | None = None) -> float | None:
    """The magnitude above 0 that `wanted` elements, on average over the ranks, have or exceed.

    Args:
        x_C: Not empty.
        low: The bits of a magnitude; there may be elements below it that are not in x. None: there are not.

    Returns None where it would be below that.
    """
    found = _own(x_C, wanted) if agree is alone else _common(x_C, wanted, agree, low)
    if found is None:
        return None
    return ops.magnitude(min(max(1, found), bits_of(math.inf, x_C.dtype)), x_C.dtype)


def bits_of(magnitude: float, dtype: torch.dtype) -> int:
    """The bits of one magnitude, as integers that order as magnitudes do."""
    return int(ops.magnitude_bits(torch.tensor(magnitude, dtype=dtype)))


def _own(x_C: Tensor, wanted: float) -> int | None:
    k = max(1, math.floor(wanted + 1e-9))
    if x_C.numel() < k:
        return None
    return int(ops.magnitude_bits(x_C).kthvalue(x_C.numel() - k + 1).values)


def _common(x_C: Tensor, wanted: float, agree: Agree, low: int | None) -> int | None:
    shift = ops.top_bits(x_C.dtype)
    first = 0 if low is None else low
    num = 1 << (torch.finfo(x_C.dtype).bits - 1 - shift) if low is None else WINDOW
    above = 0.0
    while True:
        counts_B = agree(ops.magnitude_histogram(x_C, first, shift, num).float()).tolist()
        number = num - 1
        while number >= 0 and above + counts_B[number] < wanted:
            above += counts_B[number]
            number -= 1
        # The last of the first bins holds all that is above it too.
        if low is not None and number in (-1, num - 1):
            return None
        number = max(0, number)  # a sum of float32 may fall short of what is wanted
        inside, first = counts_B[number], first + (number << shift)
        if shift == 0 or inside <= FINE * wanted:
            # The edge of the bin that comes nearer, but never one that nothing lies above.
            nearer = above > 0 and above + inside - wanted > wanted - above
            return first + (1 << shift) if nearer else first
        bits_C = ops.magnitude_bits(x_C)
        x_C = x_C[(bits_C >= first) & (bits_C < first + (1 << shift))]
        finer = min(shift, WINDOW.bit_length() - 1)
        shift, num, low = shift - finer, 1 << finer, None
