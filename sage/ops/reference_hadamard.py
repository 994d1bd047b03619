"""Plain-torch reference of `sage.ops.hadamard`; csrc/cpu/hadamard.h has the same formulas."""
# N = elements of the vector, B = buckets, L = elements of a bucket

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sage.ops import reference_philox


def hadamard(x_N: Tensor, sizes: Sequence[int], bucket: int, key: int, *, inverse: bool) -> Tensor:
    """Transform each bucket, in place."""
    num = sum(-(-n // bucket) for n in sizes)
    half_H = torch.zeros(num * bucket // 16, dtype=torch.int32, device=x_N.device)
    reference_philox.random_bits_(half_H, key, (0,), (0,))
    bit_16 = torch.arange(16, dtype=torch.int32, device=x_N.device)
    is_flipped_BL = (half_H[:, None] >> bit_16 & 1).bool().view(num, bucket)
    first = 0
    for x in x_N.split(list(sizes)):
        whole, rest = divmod(x.numel(), bucket)
        _transform(x[: whole * bucket].view(whole, bucket), is_flipped_BL[first : first + whole], inverse)
        begin = 0
        while begin < rest:
            length = 1 << (rest - begin).bit_length() - 1
            part_1L = x[whole * bucket :][begin : begin + length][None]
            _transform(part_1L, is_flipped_BL[first + whole, None, begin : begin + length], inverse)
            begin += length
        first += whole + (rest > 0)
    return x_N


def _transform(x_BL: Tensor, is_flipped_BL: Tensor, inverse: bool) -> None:
    """Transform rows whose length is a power of two, in place."""
    a_BL = x_BL if inverse else torch.where(is_flipped_BL, -x_BL, x_BL)
    length, apart = x_BL.shape[1], 1
    while apart < length:
        low, high = a_BL.view(-1, length // (2 * apart), 2, apart).unbind(2)
        a_BL = torch.stack((low + high, low - high), 2).view_as(x_BL)
        apart *= 2
    a_BL = a_BL * (1 / math.sqrt(length))
    x_BL.copy_(torch.where(is_flipped_BL, -a_BL, a_BL) if inverse else a_BL)
