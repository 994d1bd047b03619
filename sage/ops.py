"""The operations a reducer spends its time in: select, compact, scatter. Plain-torch references.

Every op treats magnitudes as the integer bits of |x|: for floats these order as the values do, zeros compare
equal, and a NaN is the largest of all, so that it is selected, sent and seen instead of hiding in the
residual. Ties are broken towards the lower index, so results are the same everywhere, to the bit.
"""
# N = elements of the flat vector, K = elements selected, M = elements of all ranks together

import math
from collections.abc import Sequence

import torch
from torch import Tensor

_BITS = {
    torch.float32: torch.int32,
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
    torch.float64: torch.int64,
}


def magnitude_bits(x_N: Tensor) -> Tensor:
    """|x| as integers that order as |x| does, NaN above infinity.

    Raises:
        TypeError: where x is not floating point.
    """
    if x_N.dtype not in _BITS:
        raise TypeError(f"a vector of {x_N.dtype}: expected one of {', '.join(map(str, _BITS))}")
    return x_N.abs().view(_BITS[x_N.dtype])


def accumulate(grad_N: Tensor, residual_N: Tensor | None) -> Tensor:
    """The signal a = residual + gradient. Where there is a residual it is formed there, in place."""
    return grad_N if residual_N is None else residual_N.add_(grad_N)


def select_top(x_N: Tensor, k: int) -> Tensor:
    """Indices (int64, ascending) of the k largest |x|, the lower index first among equals."""
    n = x_N.numel()
    if k >= n:
        return torch.arange(n, device=x_N.device)
    if k == 0:
        return torch.empty(0, dtype=torch.int64, device=x_N.device)
    bits_N = magnitude_bits(x_N)
    least = torch.topk(bits_N, k, sorted=False).values.min()
    above = (bits_N > least).nonzero().view(-1)
    ties = (bits_N == least).nonzero().view(-1)[: k - above.numel()]
    return torch.cat((above, ties)).sort().values


def select_above(x_N: Tensor, threshold: float) -> Tensor:
    """Indices (int64, ascending) where |x| >= threshold, or x is NaN; the threshold is rounded as x is."""
    return (~(x_N.abs() < threshold)).nonzero().view(-1)


def count_above(x_N: Tensor, threshold: float) -> int:
    """How many elements `select_above` would take."""
    return int((~(x_N.abs() < threshold)).sum())


def magnitude(bits: int, dtype: torch.dtype) -> float:
    """The magnitude that has these bits: `magnitude_bits` undone, for one number."""
    return float(torch.tensor(bits, dtype=_BITS[dtype]).view(dtype))


def top_bits(dtype: torch.dtype) -> int:
    """How many bits lie below the exponent and the five bits after it: bins of |x| a thirty-second wide."""
    return round(-math.log2(torch.finfo(dtype).eps)) - 5


def magnitude_histogram(x_N: Tensor, first: int, shift: int, num: int) -> Tensor:
    """How many of |x| lie in bins of 2^shift values of their bits, from the bits `first` on: counts (int64).

    What is above the last bin is counted in it; nothing may be below the first. All of a vector by its top
    bits is `magnitude_histogram(x_N, 0, top_bits(x_N.dtype), 8192)` for float32.
    """
    bin_N = (magnitude_bits(x_N) - first >> shift).clamp_(max=num - 1)
    return torch.bincount(bin_N, minlength=num)


def take(signal_N: Tensor, at_K: Tensor, *, dtype: torch.dtype, keep: bool) -> Tensor:
    """The signal's values at `at_K`, rounded to `dtype`; with `keep`, the signal keeps what was not taken.

    What stays behind is 0 for a value that travels as it is, and the rounding error for one that does not.
    """
    own_K = signal_N[at_K]
    values_K = own_K.to(dtype)
    if values_K.dtype == own_K.dtype:
        if keep:
            signal_N[at_K] = 0
        return values_K
    # What would overflow travels as the largest finite value; what is not finite must be seen as it is.
    largest = torch.finfo(dtype).max
    values_K = torch.where(own_K.isfinite(), values_K.clamp(-largest, largest), values_K)
    if keep:
        signal_N[at_K] = (own_K - values_K.to(own_K.dtype)).nan_to_num_(0.0, 0.0, 0.0)
    return values_K


def scatter_mean(values_M: Tensor, at_M: Tensor, counts: Sequence[int], out_N: Tensor) -> Tensor:
    """The mean over ranks of sparse vectors: out = Σ_w scatter(values_w, at_w) / W, written into out_N.

    Args:
        values_M: All ranks' values, one rank after another.
        at_M: Their indices. What is sent to the same place adds up.
        counts: How many belong to each of the W ranks.
        out_N: Overwritten.
    """
    out_N.zero_()
    start = 0
    # Rank by rank, so that the order of the additions, and with it the result's last bit, is always the same.
    for count in counts:
        stop = start + count
        out_N.index_add_(0, at_M[start:stop], values_M[start:stop].to(out_N.dtype))
        start = stop
    return out_N.div_(len(counts))
