"""The operations on which reducers spend their time: accumulate, select, compact, scatter, pack.

Every op compares magnitudes as the integer bits of |x|. For floats these have the order of the values, all
zeros are equal, and NaN is the largest, so that NaN is selected and sent instead of staying in the residual.
Of equal magnitudes the lower index is selected first, so results are bitwise identical everywhere.

Each op runs natively if the extension is built (`sage.ops.native`) and the vectors are contiguous float32,
and otherwise in plain torch (`sage.ops.reference`), with the same result.
"""
# N = elements of the flat vector, K = elements selected, M = elements of all ranks together, B = bytes

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sage.ops import native, reference
from sage.ops.reference import NUM_BINS as NUM_BINS
from sage.ops.reference import magnitude_bits as magnitude_bits

_native = torch.ops.sage


def accumulate(grad_N: Tensor, residual_N: Tensor | None) -> Tensor:
    """The signal a = residual + gradient, formed in place in the residual if there is one."""
    return grad_N if residual_N is None else residual_N.add_(grad_N)


def select_top(x_N: Tensor, k: int) -> Tensor:
    """Indices (int64, ascending) of the k largest |x|; of equal ones, the lower index first."""
    if native.takes("top_", x_N):
        n = x_N.numel()
        return _native.top_.default(x_N, None, [0, n], [min(k, n)], keep=False, clear=False)[1].long()
    return reference.select_top(x_N, k)


def select_above(x_N: Tensor, threshold: float) -> Tensor:
    """Indices (int64, ascending) where |x| ≥ threshold or x is NaN; the threshold is rounded to x's dtype."""
    if native.takes("select_", x_N):
        return _native.select_.default(x_N, None, threshold, False, False, None, 1)[1].long()
    return reference.is_above(x_N, threshold).nonzero().view(-1)


def count_above(x_N: Tensor, threshold: float) -> int:
    """Number of elements that `select_above` would select."""
    if native.takes("count_above", x_N):
        return int(_native.count_above.default(x_N, threshold))
    return int(reference.is_above(x_N, threshold).sum())


def magnitude(bits: int, dtype: torch.dtype) -> float:
    """The magnitude with these bits; the inverse of `magnitude_bits` for one number."""
    return float(torch.tensor(bits, dtype=reference.BITS[dtype]).view(dtype))


def least_magnitude(x_K: Tensor) -> float:
    """The smallest |x|; infinity if none is a number, 0 if there are no elements."""
    if x_K.numel() == 0:
        return 0.0
    least = float(x_K.abs().min())
    if math.isnan(least):  # of some, or of all
        least = float(x_K.abs().nan_to_num_(math.inf, math.inf).min())
    return least


def take(signal_N: Tensor, at_K: Tensor, *, dtype: torch.dtype, keep: bool) -> Tensor:
    """The signal's values at `at_K`, rounded to `dtype`; with `keep` they are removed from the signal.

    The signal then holds 0 where a value was sent exactly, and the rounding error where it was rounded.
    """
    return rounded(signal_N, reference.take(signal_N, at_K, keep=keep), at_K, dtype=dtype, keep=keep)


def take_above(
    grad_N: Tensor,
    residual_N: Tensor | None,
    threshold: float,
    *,
    dtype: torch.dtype = torch.float32,
    clear: bool = False,
    bins: Tensor | None = None,
    every: int = 32,
) -> tuple[Tensor, Tensor]:
    """Accumulate and take what `select_above` selects, in one pass: values and indices (int32, ascending).

    Args:
        grad_N: The gradient; without a residual it is the signal, and is not modified.
        residual_N: Accumulated into; keeps what is not taken, as in `take`.
        threshold: Smallest magnitude to take.
        dtype: Dtype of the values.
        clear: Whether to set the gradient to 0 after it is added to the residual.
        bins: int32, NUM_BINS: the signal's magnitudes are counted in it, for `threshold_from_histogram`.
        every: Count only one in `every` groups of 64 elements.
    """
    keep = residual_N is not None
    signal_N, added_N = (grad_N, None) if residual_N is None else (residual_N, grad_N)
    if native.takes("select_", signal_N, added_N, bins):
        own_K, at_K = _native.select_.default(signal_N, added_N, threshold, keep, clear, bins, every)
    else:
        own_K, at_K = reference.take_above(signal_N, added_N, threshold, clear=clear, bins=bins, every=every)
    return rounded(signal_N, own_K, at_K, dtype=dtype, keep=keep), at_K


def take_top(
    grad_N: Tensor,
    residual_N: Tensor | None,
    bounds: Sequence[int],
    counts: Sequence[int],
    *,
    dtype: torch.dtype = torch.float32,
    clear: bool = False,
    near: tuple[float, float] = (0.0, 0.0),
) -> tuple[Tensor, Tensor]:
    """Accumulate and take what `select_top` selects in each group: values and indices (int32, ascending).

    Args:
        grad_N: The gradient; without a residual it is the signal, and is not modified.
        residual_N: Accumulated into; keeps what is not taken, as in `take`.
        bounds: Group g is elements `[bounds[g], bounds[g + 1])`; together the groups are the whole vector.
        counts: Number of elements to take from each group, at most all.
        dtype: Dtype of the values.
        clear: Whether to set the gradient to 0 after it is added to the residual.
        near: Hint: magnitudes between which the smallest one taken should be. It does not change the result:
            the native op then needs no sample, and is slower if the hint is wrong.
    """
    keep = residual_N is not None
    signal_N, added_N = (grad_N, None) if residual_N is None else (residual_N, grad_N)
    if native.takes("top_", signal_N, added_N):
        own_K, at_K = _native.top_.default(signal_N, added_N, bounds, counts, keep, clear, *near)
    else:
        own_K, at_K = reference.take_top(signal_N, added_N, bounds, counts, clear=clear)
    return rounded(signal_N, own_K, at_K, dtype=dtype, keep=keep), at_K


def rounded(signal_N: Tensor, own_K: Tensor, at_K: Tensor, *, dtype: torch.dtype, keep: bool) -> Tensor:
    """Values cast to `dtype`; with `keep`, the rounding error is written back to the signal."""
    if own_K.dtype is dtype:
        return own_K
    if torch.promote_types(own_K.dtype, dtype) is dtype:
        return own_K.to(dtype)
    values_K, left_K = reference.round_to(own_K, dtype)
    if keep:
        signal_N[at_K] = left_K
    return values_K


def histogram(x_N: Tensor, *, every: int = 1) -> Tensor:
    """Number of magnitudes in each of NUM_BINS bins (int32), in one of `every` groups of 64 elements.

    A bin is 1.1 to 1.6 % wide: the exponent and the first 6 bits of the mantissa as a number.
    """
    bins = torch.zeros(NUM_BINS, dtype=torch.int32, device=x_N.device)
    if native.takes("histogram_", x_N):
        _native.histogram_.default(bins, x_N, every)
    else:
        reference.histogram(bins, x_N, every)
    return bins


def threshold_from_histogram(bins: Tensor, density: float) -> float:
    """Threshold that a share `density` of the counted magnitudes reaches, interpolated within its bin.

    Returns:
        The threshold; infinity if nothing was counted.
    """
    falling = bins.flip(0).cumsum(0, dtype=torch.int64)
    num = int(falling[-1])
    wanted = density * num
    if num == 0:
        return float("inf")
    bin_ = NUM_BINS - 1 - int(torch.searchsorted(falling, wanted))
    here = int(bins[bin_])
    above = int(falling[NUM_BINS - 1 - bin_]) - here
    edges = torch.tensor([bin_, bin_ + 1]) << reference.BIN_SHIFT
    low, high = edges.int().view(torch.float32).tolist()
    return low + (high - low) * (1 - (wanted - above) / here) if high < float("inf") else low


def sample(grad_N: Tensor, residual_N: Tensor | None, *, every: int, first: int = 0) -> Tensor:
    """The signal's elements in one of `every` groups of 32 (two cache lines), starting at group `first`.

    Neighbouring elements are similar in magnitude, so many short groups are more informative than few long
    ones.
    """
    rows = [x_N[32 * first :].unfold(0, 32, 32 * every) for x_N in (grad_N, residual_N) if x_N is not None]
    return (rows[1] + rows[0] if len(rows) == 2 else rows[0]).flatten()


def threshold_from_sample(sample_S: Tensor, density: float, near: tuple[float, float] = (0.0, 0.0)) -> float:
    """Largest magnitude that a share `density` of a sample, or more, reaches; `near` as in `take_top`."""
    num = sample_S.numel()
    k = min(num, max(1, math.ceil(density * num)))
    return least_magnitude(take_top(sample_S, None, [0, num], [k], near=near)[0])


def scatter_mean(
    values_M: Tensor, at_M: Tensor, counts: Sequence[int], out_N: Tensor, *, zeroed: bool = False
) -> Tensor:
    """Mean over ranks of sparse vectors: out = Σ_w scatter(values_w, at_w) / W, written into out_N.

    Args:
        values_M: Values of all ranks, concatenated by rank.
        at_M: Their indices, ascending within each rank. Values with the same index are added.
        counts: Number of values of each of the W ranks.
        out_N: Output; overwritten.
        zeroed: Whether out_N is already 0 everywhere, as after `clear`.
    """
    if values_M.dtype is not out_N.dtype:
        values_M = values_M.to(out_N.dtype)
    if native.takes("scatter_mean_", out_N, values_M, at_M) and at_M.dtype == torch.int32:
        _native.scatter_mean_.default(out_N, values_M, at_M, counts, zeroed)
        return out_N
    return reference.scatter_mean(values_M, at_M, counts, out_N, zeroed=zeroed)


def clear(out_N: Tensor, at_K: Tensor) -> Tensor:
    """Set these elements to zero: faster than zeroing the whole vector if they are few."""
    if native.takes("clear_", out_N, at_K) and at_K.dtype == torch.int32:
        _native.clear_.default(out_N, at_K)
        return out_N
    return out_N.index_fill_(0, at_K.long(), 0)


def pack(codes_N: Tensor, bits: int) -> Tensor:
    """Codes (uint8) of 1 to 8 bits without gaps: code i starts at bit i·bits of the bytes, low bit first."""
    if native.takes("pack", codes_N, dtype=torch.uint8):
        return _native.pack.default(codes_N, bits)
    return reference.pack(codes_N, bits)


def unpack(bytes_B: Tensor, bits: int, n: int) -> Tensor:
    """Unpack n codes from `pack`'s bytes."""
    if native.takes("unpack", bytes_B, dtype=torch.uint8):
        return _native.unpack.default(bytes_B, bits, n)
    return reference.unpack(bytes_B, bits, n)


def pack_signs(x_N: Tensor) -> Tensor:
    """One bit per element, set if it is not negative."""
    if native.takes("pack_signs", x_N):
        return _native.pack_signs.default(x_N)
    return reference.pack((~(x_N < 0)).to(torch.uint8), 1)


def unpack_signs(bytes_B: Tensor, n: int, scale: float = 1.0) -> Tensor:
    """+scale (float32) for each set bit, −scale for each other bit."""
    if native.takes("unpack_signs", bytes_B, dtype=torch.uint8):
        return _native.unpack_signs.default(bytes_B, n, scale)
    return reference.unpack_signs(bytes_B, n, scale)


def draw(n: int, bits: int, seed: int, device: torch.device) -> Tensor:
    """Random integers of `bits` bits, 1 to 24, for n elements (int32): those of torch.randint with this seed.

    >>> generator = torch.Generator().manual_seed(7)
    >>> torch.equal(draw(5, 24, 7, torch.device("cpu")) / 2**24, torch.rand(5, generator=generator))
    True
    """
    out_N = torch.empty(n, dtype=torch.int32, device=device)
    if native.takes("draw_", out_N, dtype=torch.int32):
        _native.draw_.default(out_N, seed, bits)
        return out_N
    return reference.draw_(out_N, bits, seed)


def encode_gaps(at_K: Tensor) -> Tensor:
    """Encode ascending indices (int32) as bytes: the gaps between them, 7 bits per byte (LEB128).

    >>> encode_gaps(torch.tensor([0, 1, 130, 1000], dtype=torch.int32)).tolist()
    [0, 0, 128, 1, 229, 6]
    """
    if native.takes("encode_gaps", at_K, dtype=torch.int32):
        return _native.encode_gaps.default(at_K)
    return reference.encode_gaps(at_K)


def decode_gaps(bytes_B: Tensor, num: int) -> Tensor:
    """Decode `num` indices (int32) from `encode_gaps`'s bytes."""
    if native.takes("decode_gaps", bytes_B, dtype=torch.uint8):
        return _native.decode_gaps.default(bytes_B, num)
    return reference.decode_gaps(bytes_B, num)


def encode_bitmap(at_K: Tensor, n: int) -> Tensor:
    """Encode indices (int32) as one bit per element of n: shorter than gaps above a density of about 1/8."""
    if native.takes("encode_bitmap", at_K, dtype=torch.int32):
        return _native.encode_bitmap.default(at_K, n)
    return reference.encode_bitmap(at_K, n)


def decode_bitmap(bytes_B: Tensor) -> Tensor:
    """Decode indices (int32, ascending) from `encode_bitmap`'s bytes."""
    if native.takes("decode_bitmap", bytes_B, dtype=torch.uint8):
        return _native.decode_bitmap.default(bytes_B)
    return reference.decode_bitmap(bytes_B)


def encode_indices(at_K: Tensor, n: int) -> Tensor:
    """Encode ascending indices (int32) below n as bytes: gaps, or the bitmap if it is not longer.

    >>> encode_indices(torch.tensor([0, 1, 130, 1000], dtype=torch.int32), 8000).numel()
    6
    >>> encode_indices(torch.arange(8000, dtype=torch.int32), 8000).numel()
    1000
    """
    gaps_B = encode_gaps(at_K)
    return gaps_B if gaps_B.numel() < -(-n // 8) else encode_bitmap(at_K, n)


def decode_indices(bytes_B: Tensor, n: int) -> Tensor:
    """Decode indices (int32, ascending) below n from `encode_indices`'s bytes."""
    if bytes_B.numel() >= -(-n // 8):
        return decode_bitmap(bytes_B)
    return decode_gaps(bytes_B, int((bytes_B < 0x80).sum()))  # the last byte of each gap is below 128
