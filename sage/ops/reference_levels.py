"""Plain-torch reference of every op in `sage.ops.levels`; csrc/cpu/levels_kernel.h has the same formulas."""
# N = elements of the flat vector, G = groups, P = buckets, B = bytes, W = payloads

from collections.abc import Sequence

import torch
from torch import Tensor

from sage.ops import reference, reference_philox, reference_sums, reference_tree
from sage.ops.codecs import Coding

INT8, E4M3, E5M2, LINEAR, NATURAL, POWER8, POWER9, E2M1, TREE = range(9)
FLOATS = {E4M3: torch.float8_e4m3fn, E5M2: torch.float8_e5m2}
SIGN, MAGNITUDE, INFINITE, LARGEST = -(2**31), 0x7FFFFFFF, 0x7F800000, 0x7F000000


def quantise(
    signal_N: Tensor,
    added_N: Tensor | None,
    sizes: Sequence[int],
    coding: Coding,
    norm: int,
    key: int,
    starts: Sequence[int],
    firsts: Sequence[int],
    *,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    """Accumulate, find the scales, encode."""
    buckets = bucket_sizes(sizes, coding.bucket)
    rows = reference_sums.statistics(signal_N, added_N, buckets, norm)
    scale_P = (rows[0].sqrt() if norm == 2 else rows[2]).float()
    codes_B = quantise_to(signal_N, sizes, coding, scale_P, None, key, starts, firsts, keep=keep)
    return codes_B, scale_P


def quantise_to(
    signal_N: Tensor,
    sizes: Sequence[int],
    coding: Coding,
    scale_P: Tensor,
    limit_P: Tensor | None,
    key: int,
    starts: Sequence[int],
    firsts: Sequence[int],
    *,
    keep: bool,
) -> Tensor:
    """Encode, then subtract the decoded values."""
    a_N = signal_N.float().clone()
    spread = _Spread(sizes, coding.bucket)
    y_N = a_N
    if coding.codec != POWER9:
        y_N = a_N if coding.codec == TREE else torch.where(a_N.isfinite(), a_N, 0.0)
        if limit_P is not None:
            limit_N = spread(limit_P)
            y_N = torch.where(y_N.abs() < limit_N, y_N, limit_N.copysign(y_N))
    if coding.codec == TREE:
        sign_N = torch.where(y_N.isnan(), 1.0, y_N)  # the sign of NaN depends on the processor
        y_N = (y_N.abs() / spread(torch.where(scale_P > 0, scale_P, 1.0))).copysign(sign_N)
    elif coding.codec != POWER9:
        # In two factors, so that neither of them overflows where the scale is extreme.
        pre_P = torch.where(scale_P < 2.0**-64, 2.0**64, torch.where(scale_P > 2.0**64, 2.0**-64, 1.0))
        inverse_P = torch.full_like(scale_P, most(coding)) / (scale_P * pre_P)
        inverse_P = torch.where((scale_P > 0) & scale_P.isfinite(), inverse_P, 0.0)
        y_N = y_N * spread(pre_P) * spread(inverse_P)
    random_N = torch.zeros(a_N.numel(), dtype=torch.int32, device=a_N.device)
    if LINEAR <= coding.codec <= POWER9:
        reference_philox.random_bits_(random_N, key, starts, firsts)
    code_N = _codes(coding, y_N, random_N)
    if keep:
        value_N = _values(coding, code_N)
        if coding.codec == POWER9:
            value_N = torch.where(a_N < 0, -value_N, value_N)
        else:
            value_N = value_N * spread(_steps(coding, scale_P))
        signal_N.copy_((a_N - value_N).nan_to_num_(0.0, 0.0, 0.0))
    bytes_B = (
        reference.pack(code_N.to(torch.uint8), coding.bits) if coding.bits < 8 else code_N.to(torch.uint8)
    )
    if coding.codec == POWER9:
        bytes_B = torch.cat((bytes_B, reference.pack((~(a_N < 0)).to(torch.uint8), 1)))
    return bytes_B


def average(
    out_N: Tensor,
    bytes_WB: Tensor,
    scale_WP: Tensor,
    sizes: Sequence[int],
    coding: Coding,
    *,
    divisor: int,
    added: bool,
) -> Tensor:
    """Zero, add payload by payload, divide."""
    n = out_N.numel()
    spread = _Spread(sizes, coding.bucket)
    if not added:
        out_N.zero_()
    for bytes_B, scale_P in zip(bytes_WB, scale_WP, strict=True):
        code_N = reference.unpack(bytes_B, coding.bits, n) if coding.bits < 8 else bytes_B[:n]
        value_N = _values(coding, code_N.int())
        if coding.codec == POWER9:
            is_high_N = reference.unpack(bytes_B[n:], 1, n).bool()
            value_N = torch.where(is_high_N, value_N, -value_N)
        else:
            value_N = value_N * spread(_steps(coding, scale_P))
        out_N += value_N
    return out_N.div_(out_N.new_full((), divisor))  # torch multiplies by the inverse of a number on a GPU


def most(coding: Coding) -> float:
    """The number that the scale becomes."""
    named = {INT8: 127.0, E4M3: 448.0, E5M2: 57344.0, LINEAR: float(coding.levels), E2M1: 4.0}
    return named.get(int(coding.codec), 1.0)


def _steps(coding: Coding, scale_P: Tensor) -> Tensor:
    """The value of one level in each bucket; a division by a number would multiply by its inverse."""
    return scale_P / torch.full_like(scale_P, 1.75 if coding.codec in FLOATS else most(coding))


def bucket_sizes(sizes: Sequence[int], bucket: int | None) -> list[int]:
    """Number of elements of each bucket.

    >>> bucket_sizes([5, 2], 4), bucket_sizes([5, 2], None)
    ([4, 1, 2], [5, 2])
    """
    if bucket is None:
        return list(sizes)
    return [min(bucket, n - start) for n in sizes for start in range(0, n, bucket)]


class _Spread:
    """Repeats the number of each bucket for all its elements."""

    def __init__(self, sizes: Sequence[int], bucket: int | None) -> None:
        self._sizes = torch.tensor(bucket_sizes(sizes, bucket), dtype=torch.int64)

    def __call__(self, numbers_P: Tensor) -> Tensor:
        return numbers_P.repeat_interleave(self._sizes.to(numbers_P.device))


def _codes(coding: Coding, y_N: Tensor, random_N: Tensor) -> Tensor:
    """The code of each element (int32)."""
    codec, levels = int(coding.codec), coding.levels
    bits_N = y_N.view(torch.int32)
    negative_N, magnitude_N = bits_N < 0, bits_N & MAGNITUDE
    if codec == INT8:
        return y_N.clamp(-127, 127).round().int() & 0xFF
    if codec in FLOATS:
        largest = most(coding)
        return y_N.clamp(-largest, largest).to(FLOATS[codec]).view(torch.uint8).int()
    if codec == E2M1:
        return _nearest_e2m1(magnitude_N.view(torch.float32)).int() | negative_N.int() << 3
    if codec == TREE:
        return reference_tree.nearest(magnitude_N.view(torch.float32)) | negative_N.int() << 7
    uniform_N = (random_N.float() + 0.5) * 2.0**-16
    if codec == LINEAR:
        low_N = y_N.abs().floor()
        level_N = (low_N + (uniform_N < y_N.abs() - low_N)).clamp(max=levels).int()
        return torch.where(negative_N, levels - level_N, levels + level_N)
    carried_N = magnitude_N + (random_N << 7 | 64)
    if codec == POWER9:
        return torch.maximum(carried_N.clamp(max=LARGEST), magnitude_N & INFINITE) >> 23
    levels, offset = (127, 1) if codec == POWER8 else (levels, 127 - levels)
    high_N = ((carried_N >> 23) - offset).clamp(max=levels)
    low_N = (uniform_N < y_N.abs() * 2.0 ** (126 - offset)).int()
    level_N = torch.where(magnitude_N < offset + 1 << 23, low_N, high_N)
    if codec == POWER8:
        return level_N | negative_N.int() << 7
    return torch.where(negative_N, levels - level_N, levels + level_N)


def _values(coding: Coding, code_N: Tensor) -> Tensor:
    """The decoded values as multiples of their bucket's step (float32)."""
    codec, levels = int(coding.codec), coding.levels
    if codec == INT8:
        return ((code_N ^ 0x80) - 0x80).float()
    if codec in FLOATS:
        # The multiples are smaller here, so that the step does not underflow where the scale does not.
        return code_N.to(torch.uint8).view(FLOATS[codec]).float() * (2.0**-8 if codec == E4M3 else 2.0**-15)
    if codec == LINEAR:
        return (code_N - levels).float()
    if codec == POWER9:
        return (code_N << 23).view(torch.float32)
    if codec == E2M1:
        size_N = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0], device=code_N.device)[code_N & 7]
        return torch.where(code_N & 8 != 0, -size_N, size_N)
    if codec == TREE:
        size_N = reference_tree.tree(code_N.device)[code_N & 0x7F]
        return torch.where(code_N > 0x7F, -size_N, size_N)
    level_N, offset = (code_N & 0x7F, 1) if codec == POWER8 else ((code_N - levels).abs(), 127 - levels)
    power_N = torch.where(level_N > 0, (level_N + offset << 23).view(torch.float32), 0.0)
    return torch.where(code_N >= 0x80 if codec == POWER8 else code_N < levels, -power_N, power_N)


def _nearest_e2m1(size_N: Tensor) -> Tensor:
    """The code of the value of `E2M1` that is nearest to a magnitude; of two, the even one (int64)."""
    middle_7 = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0], device=size_N.device)
    low_N, high_N = (torch.bucketize(size_N, middle_7, right=right) for right in (False, True))
    return torch.where(low_N % 2 == 0, low_N, high_N)
