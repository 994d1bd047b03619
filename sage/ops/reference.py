"""Plain-torch reference of every op in `sage.ops`; the native kernels must match it to the bit.

It runs if there is no extension, and for inputs that the extension does not support. `sage.ops` documents
each function.
"""
# N = elements of the flat vector, K = elements selected, M = elements of all ranks together, B = bytes

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

GROUP = 64
"""Elements that a histogram counts or skips together."""
BIN_SHIFT = 17
"""A bin is the exponent and the first 6 mantissa bits of a float32."""
NUM_BINS = 1 << (31 - BIN_SHIFT)

BITS = {
    torch.float32: torch.int32,
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
    torch.float64: torch.int64,
}


def magnitude_bits(x_N: Tensor) -> Tensor:
    """|x| as integers with the same order as |x|, NaN above infinity.

    Raises:
        TypeError: if x is not floating point.
    """
    if x_N.dtype not in BITS:
        raise TypeError(f"a vector of {x_N.dtype}: expected one of {', '.join(map(str, BITS))}")
    return x_N.abs().view(BITS[x_N.dtype])


def select_top(x_N: Tensor, k: int) -> Tensor:
    """Indices (int64, ascending) of the k largest |x|; of equal ones, the lower index first."""
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


def is_above(x_N: Tensor, threshold: float) -> Tensor:
    """Where |x| ≥ threshold or x is NaN (bool, N)."""
    return ~(x_N.abs() < threshold)


def round_to(own_K: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Values rounded to a narrower `dtype` for sending, and the rounding errors."""
    values_K = own_K.to(dtype)
    # Clamp values that would overflow to the largest finite one; NaN and infinity are sent unchanged.
    largest = torch.finfo(dtype).max
    values_K = torch.where(own_K.isfinite(), values_K.clamp(-largest, largest), values_K)
    return values_K, (own_K - values_K.to(own_K.dtype)).nan_to_num_(0.0, 0.0, 0.0)


def take(signal_N: Tensor, at_K: Tensor, *, keep: bool) -> Tensor:
    """The signal's values at `at_K`; with `keep`, they are set to 0 in the signal."""
    own_K = signal_N[at_K]
    if keep:
        signal_N[at_K] = 0
    return own_K


def take_above(
    signal_N: Tensor,
    added_N: Tensor | None,
    threshold: float,
    *,
    clear: bool,
    bins: Tensor | None,
    every: int,
) -> tuple[Tensor, Tensor]:
    """Accumulate, count, select by threshold, compact and zero, in separate passes."""
    _add(signal_N, added_N, clear)
    if bins is not None:
        histogram(bins, signal_N, every)
    at_K = is_above(signal_N, threshold).nonzero().view(-1)
    return take(signal_N, at_K, keep=added_N is not None), at_K.int()


def take_above_each(
    signal_N: Tensor,
    added_N: Tensor | None,
    bounds: Sequence[int],
    thresholds: Sequence[float],
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Accumulate, select each group by its threshold, compact and zero, in separate passes."""
    _add(signal_N, added_N, False)
    chosen = [
        is_above(signal_N[start:stop], threshold).nonzero().view(-1) + start
        for start, stop, threshold in zip(bounds, bounds[1:], thresholds, strict=False)
    ]
    at_K = torch.cat(chosen) if chosen else torch.empty(0, dtype=torch.int64, device=signal_N.device)
    counts_G = torch.tensor([at_k.numel() for at_k in chosen], dtype=torch.int64)
    return take(signal_N, at_K, keep=keep), at_K.int(), counts_G


def take_top(
    signal_N: Tensor, added_N: Tensor | None, bounds: Sequence[int], counts: Sequence[int], *, clear: bool
) -> tuple[Tensor, Tensor]:
    """Accumulate, select the largest of each group, compact and zero, in separate passes."""
    _add(signal_N, added_N, clear)
    chosen = [
        select_top(signal_N[start:stop], k) + start
        for start, stop, k in zip(bounds, bounds[1:], counts, strict=False)
    ]
    at_K = torch.cat(chosen) if chosen else torch.empty(0, dtype=torch.int64, device=signal_N.device)
    return take(signal_N, at_K, keep=added_N is not None), at_K.int()


def _add(signal_N: Tensor, added_N: Tensor | None, clear: bool) -> None:
    if added_N is not None:
        signal_N.add_(added_N)
        if clear:
            added_N.zero_()


def histogram(bins: Tensor, x_N: Tensor, every: int) -> None:
    """Count the magnitudes in every `every`-th group of 64 elements into the bins."""
    group_N = torch.arange(x_N.numel(), device=x_N.device) // GROUP
    bits = magnitude_bits(x_N[group_N % every == 0].float())
    bins += torch.bincount(bits >> BIN_SHIFT, minlength=NUM_BINS).to(bins.dtype)


def scatter_mean(
    values_M: Tensor, at_M: Tensor, counts: Sequence[int], out_N: Tensor, *, zeroed: bool
) -> Tensor:
    """Zero, add rank by rank, divide."""
    if not zeroed:
        out_N.zero_()
    start = 0
    # Rank by rank, so that the order of the additions, and with it the result, is bitwise reproducible.
    for count in counts:
        stop = start + count
        out_N.index_add_(0, at_M[start:stop], values_M[start:stop].to(out_N.dtype))
        start = stop
    return out_N.div_(len(counts))


def pack(codes_N: Tensor, bits: int) -> Tensor:
    """Codes as a bit stream, low bit first, in whole bytes."""
    places = torch.arange(bits, device=codes_N.device)
    stream = ((codes_N[:, None] >> places) & 1).view(-1)
    stream = torch.nn.functional.pad(stream, (0, -stream.numel() % 8))
    weights = 1 << torch.arange(8, device=codes_N.device)
    return (stream.view(-1, 8) * weights).sum(1).to(torch.uint8)


def unpack(bytes_B: Tensor, bits: int, n: int) -> Tensor:
    """Codes from a bit stream."""
    stream = ((bytes_B[:, None] >> torch.arange(8, device=bytes_B.device)) & 1).view(-1)[: n * bits]
    weights = 1 << torch.arange(bits, device=bytes_B.device)
    return (stream.view(n, bits) * weights).sum(1).to(torch.uint8)


def keep_error(signal: Tensor, sent: Tensor) -> None:
    """Subtract, then clear what is not finite."""
    signal.sub_(sent).nan_to_num_(0.0, 0.0, 0.0)


def write_product(left: Tensor, right: Tensor, out: Tensor, signal: Tensor | None) -> None:
    """Add the outer products one after the other, then subtract their sum."""
    torch.mul(left[:, :1], right[:1], out=out)
    for k in range(1, right.shape[0]):
        out += left[:, k : k + 1] * right[k : k + 1]
    if signal is not None:
        keep_error(signal, out)


def thin_product(matrix: Tensor, basis: Tensor, *, transposed: bool) -> Tensor:
    """Sum 16 columns at a time, and the 16 sums by halves; or each 64 rows, and their sums."""
    (rows, columns), rank = matrix.shape, basis.shape[1]
    if transposed:
        num = -(-rows // 64)
        x = F.pad(matrix, (0, 0, 0, 64 * num - rows)).view(num, 64, 1, columns)
        q = F.pad(basis, (0, 0, 0, 64 * num - rows)).view(num, 64, rank, 1)
        sums = matrix.new_zeros(num, rank, columns)
        for row in range(64):
            sums += x[:, row] * q[:, row]
        total = matrix.new_zeros(rank, columns)
        for some in sums:
            total += some
        return total.T
    num = -(-columns // 16)
    x = F.pad(matrix, (0, 16 * num - columns)).view(rows, 1, num, 16)
    q = F.pad(basis.T, (0, 16 * num - columns)).view(rank, num, 16)
    lanes = matrix.new_zeros(rows, rank, 16)
    for block in range(num):
        lanes += x[:, :, block] * q[:, block]
    while lanes.shape[-1] > 1:
        half = lanes.shape[-1] // 2
        lanes = lanes[..., :half] + lanes[..., half:]
    return lanes.view(rows, rank).T.contiguous().T


def encode_gaps(at_K: Tensor) -> Tensor:
    """LEB128 of the gaps: 7 bits per byte, low bits first, the high bit set if more bytes follow."""
    at_K = at_K.long()
    gap_K = at_K.diff(prepend=at_K.new_full((1,), -1)) - 1
    if bool((gap_K < 0).any()):
        raise RuntimeError("indices: expected each to be above the one before it, and none below 0")
    last_K = sum((gap_K >= 1 << 7 * more).long() for more in range(1, 5)) + torch.zeros_like(gap_K)
    places = torch.arange(5, device=at_K.device)
    digits = (gap_K[:, None] >> 7 * places) & 0x7F
    digits |= (places < last_K[:, None]).long() << 7
    return digits[places <= last_K[:, None]].to(torch.uint8)


def decode_gaps(bytes_B: Tensor, num: int) -> Tensor:
    """Indices from their gaps."""
    byte_B = bytes_B.long()
    is_last_B = byte_B < 0x80
    item_B = is_last_B.cumsum(0) - is_last_B.long()
    ends_K = is_last_B.nonzero().view(-1)
    starts_K = torch.cat((ends_K.new_zeros(1), ends_K + 1))[:-1]
    whole = ends_K.numel() == num and (num == 0 or int(ends_K[-1]) == byte_B.numel() - 1)
    place_B = torch.arange(byte_B.numel(), device=byte_B.device)
    place_B = place_B - starts_K[item_B] if whole else place_B
    if not whole or bool((place_B >= 5).any()) or (num == 0 and byte_B.numel() > 0):
        raise RuntimeError(f"bytes: not those of {num} gaps")
    gap_K = byte_B.new_zeros(num).index_add_(0, item_B, (byte_B & 0x7F) << 7 * place_B)
    at_K = (gap_K + 1).cumsum(0) - 1
    if bool((at_K >= 2**31).any()):
        raise RuntimeError(f"bytes: not those of {num} gaps")
    return at_K.int()


def encode_bitmap(at_K: Tensor, n: int) -> Tensor:
    """One bit per element of n."""
    if at_K.numel() > 0 and not 0 <= int(at_K.min()) <= int(at_K.max()) < n:
        raise RuntimeError(f"indices: expected all from 0 up to {n - 1}")
    set_N = torch.zeros(n, dtype=torch.uint8, device=at_K.device)
    set_N[at_K.long()] = 1
    return pack(set_N, 1)


def decode_bitmap(bytes_B: Tensor) -> Tensor:
    """Indices of the set bits."""
    return unpack(bytes_B, 1, 8 * bytes_B.numel()).nonzero().view(-1).int()
