"""Plain-torch reference of every op in `sage.ops.integers`; csrc/cpu/integers_kernel.h has the same formulas.

A vector is read in chunks, so that what is temporary stays in a cache and its memory is bounded.
"""
# N = elements of the vector, P = parts, L = levels, C = elements of a chunk, W = ranks, B = bytes

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from sage.ops.packing import pack, unpack
from sage.ops.philox import Positions, random_bits

CHUNK = 1 << 16
"""Elements of a chunk; a multiple of 8, so that its codes begin with a byte."""


def widths(bits: int) -> list[int]:
    """Bits of each code of up to 8 that a number is cut into.

    >>> widths(8), widths(11)
    ([8], [8, 3])
    """
    return [min(8, bits - first) for first in range(0, bits, 8)]


def bytes_of_sums(n: int, bits: int) -> int:
    """Bytes of n numbers of any number of bits, as `pack_sums` writes them."""
    return sum((n * width + 7) // 8 for width in widths(bits))


def code_bits(levels: Sequence[int]) -> int:
    """Bits of the number of a level."""
    return (len(levels) - 1).bit_length()


def quantise(
    signal_N: Tensor,
    bounds_P: Tensor,
    step_P: Tensor,
    levels: Sequence[int],
    key: int,
    positions: Positions,
    *,
    shares: int,
    packed: bool,
    keep: bool,
) -> Tensor:
    """Round to integers of the table; with `keep`, leave the error in the signal."""
    length, most, device = -(-signal_N.numel() // shares), levels[-1], signal_N.device
    bits = code_bits(levels) if packed else 8
    steps, level_L = _Steps(bounds_P, step_P), torch.tensor(levels, dtype=torch.float32, device=device)
    # By the integer below a place: the number of the level below it, this level, the distance to the next.
    below = [min(bisect_right(levels, place), len(levels) - 1) - 1 for place in range(most)]
    number_G = torch.tensor(below, dtype=torch.uint8, device=device)
    low_G = level_L[number_G.int()]
    gap_G = level_L[number_G.int() + 1] - low_G
    bytes_WB = torch.zeros((shares, (length * bits + 7) // 8), dtype=torch.uint8, device=device)
    for share, start, stop in _chunks(signal_N.numel(), shares):
        signal_C, step_C = signal_N[start:stop], steps.between(start, stop)
        place_C = (signal_C / step_C).nan_to_num_(0.0).add_(most / 2).clamp_(0, most)
        at_C = place_C.int().clamp_(max=most - 1)
        level_C, gap_C = low_G.index_select(0, at_C), gap_G.index_select(0, at_C)
        random_C = random_bits(stop - start, key, positions=positions.part(start, stop), device=device)
        is_up_C = random_C.float().add_(0.5).mul_(2.0**-16) < place_C.sub_(level_C).div_(gap_C)
        level_C.add_(gap_C.mul_(is_up_C))
        code_C = number_G.index_select(0, at_C).add_(is_up_C) if packed else level_C.to(torch.uint8)
        code_B = pack(code_C, bits)
        first = (start - share * length) * bits // 8
        bytes_WB[share, first : first + code_B.numel()] = code_B
        if keep:
            value_C = level_C.mul_(2).sub_(most).div_(2).mul_(step_C)
            signal_C.sub_(value_C).nan_to_num_(0.0, 0.0, 0.0)
    return bytes_WB


def sums(bytes_WB: Tensor, levels: Sequence[int], n: int) -> Tensor:
    """Add the integers of each rank's codes, and pack the sums."""
    bits, wide = code_bits(levels), (len(bytes_WB) * levels[-1]).bit_length()
    level_L = torch.tensor(levels, dtype=torch.int32, device=bytes_WB.device)
    out_B = bytes_WB.new_empty(bytes_of_sums(n, wide))
    for _, start, stop in _chunks(n, 1):
        sum_C = torch.zeros(stop - start, dtype=torch.int32, device=bytes_WB.device)
        for row_B in bytes_WB:
            code_C = unpack(row_B[start * bits // 8 : (stop * bits + 7) // 8], bits, stop - start)
            sum_C += level_L.index_select(0, code_C.int())
        _write(out_B, sum_C, start, n, wide)
    return out_B


def pack_sums(sum_N: Tensor, bits: int) -> Tensor:
    """Pack numbers (int32) of any number of bits: the low 8 bits of all, then the next 8, and so on."""
    out_B = torch.empty(bytes_of_sums(sum_N.numel(), bits), dtype=torch.uint8, device=sum_N.device)
    for _, start, stop in _chunks(sum_N.numel(), 1):
        _write(out_B, sum_N[start:stop], start, sum_N.numel(), bits)
    return out_B


def unpack_sums(bytes_B: Tensor, bits: int, n: int, start: int, stop: int) -> Tensor:
    """The numbers [start, stop) (int32) of n of `pack_sums`; `start` is a multiple of 8."""
    number_C, first = torch.zeros(stop - start, dtype=torch.int32, device=bytes_B.device), 0
    for place, width in enumerate(widths(bits)):
        code_B = bytes_B[first + start * width // 8 : first + (stop * width + 7) // 8]
        number_C += unpack(code_B, width, stop - start).int() << 8 * place
        first += (n * width + 7) // 8
    return number_C


def average(
    out_N: Tensor, bytes_WB: Tensor, bits: int, bounds_P: Tensor, step_P: Tensor, *, most: int, num: int
) -> Tensor:
    """Decode sums of `num` integers."""
    length, steps = -(-out_N.numel() // len(bytes_WB)), _Steps(bounds_P, step_P)
    for share, start, stop in _chunks(out_N.numel(), len(bytes_WB)):
        first = share * length
        sum_C = unpack_sums(bytes_WB[share], bits, length, start - first, stop - first)
        value_C = sum_C.mul_(2).sub_(num * most).float().div_(2 * num)
        torch.mul(value_C, steps.between(start, stop), out=out_N[start:stop])
    return out_N


def _chunks(n: int, shares: int) -> Iterator[tuple[int, int, int]]:
    """The share, first element and end of each chunk; shares have ⌈n/shares⌉ elements, or are shorter."""
    length = -(-n // shares)
    for share in range(shares):
        end = min(n, (share + 1) * length)
        for start in range(share * length, end, CHUNK):
            yield share, start, min(end, start + CHUNK)


def _write(out_B: Tensor, sum_C: Tensor, start: int, n: int, bits: int) -> None:
    """Write numbers from number `start` on, a multiple of 8, of n."""
    first = 0
    for place, width in enumerate(widths(bits)):
        packed_B = pack((sum_C >> 8 * place & 0xFF).to(torch.uint8), width)
        at = first + start * width // 8
        out_B[at : at + packed_B.numel()] = packed_B
        first += (n * width + 7) // 8


class _Steps:
    """The step of each element, of which a part has one."""

    def __init__(self, bounds_P: Tensor, step_P: Tensor) -> None:
        self._bounds: list[int] = bounds_P.tolist()
        self._step_P = step_P

    def between(self, start: int, stop: int) -> Tensor:
        first, last = bisect_right(self._bounds, start) - 1, bisect_left(self._bounds, stop)
        cut = [start, *self._bounds[first + 1 : last], stop]
        length_P = torch.tensor([b - a for a, b in pairwise(cut)], device=self._step_P.device)
        return self._step_P[first:last].repeat_interleave(length_P)
