"""nvfp4: 4-bit floats, for each 16 an 8-bit float as the scale, and one float32 a tensor (NVIDIA, 2025)."""
# G = groups, P = blocks, B = bytes

from collections.abc import Sequence

import torch
from torch import Tensor

from sage.reduction import ops

from ._microscaling import Microscaled

BLOCK = 16
LARGEST, LARGEST_SCALE = 6.0, 448.0
"""The largest numbers of E2M1 and of E4M3."""


class NvFp4(Microscaled):
    """Each element x becomes s·t times the 4-bit float nearest to x/(s·t); 16 elements share s, a tensor t.

    NVIDIA's format NVFP4. Its values are those of E2M1: 0, ±0.5, ±1, ±1.5, ±2, ±3, ±4 and ±6. t = M/(6·448)
    is a float32, where M is the largest magnitude of the group, and s the 8-bit float (E4M3) nearest to
    m/(6·t), where m is the largest of the block. The error is at most s·t, unless s is among the denormal
    numbers of E4M3; what is above 6 in units of s·t becomes 6. Ties go to the even code. The formulas are
    those of torchao's `nvfp4_quantize`, except that it keeps s at 2⁻⁶ or more. Here s may be less, and the
    block of an s of 0 is 0: with error feedback it is sent once it is large enough. The exchange is that of
    `int8` and not NVIDIA's.

    Payload bytes per rank: W + 1 times the code of a share of 1/W of the vector, where W is the number of
    ranks. A code takes 4 bits per element, in whole bytes (`values`), and 1 byte per 16 elements and 4 bytes
    per group (`scales`); each share and each group begins a new block.
    """

    coding = ops.Coding(ops.Codec.E2M1, bucket=BLOCK)

    def encode_scales(self, largest_P: Tensor, counts: Sequence[int]) -> Tensor:
        finite_P = torch.where(largest_P.isfinite(), largest_P, 0.0)
        group_P = _groups(counts, largest_P)
        largest_G = finite_P.new_zeros(len(counts)).scatter_reduce_(0, group_P, finite_P, "amax")
        tensor_G = largest_G / largest_G.new_full((), LARGEST * LARGEST_SCALE)
        share_P = largest_P / largest_P.new_full((), LARGEST) / tensor_G[group_P]
        share_P = share_P.nan_to_num_(0.0).clamp_(max=LARGEST_SCALE)  # 0 / 0 where all are 0 or denormal
        share_P = torch.where(largest_P.isnan(), largest_P, share_P)
        return torch.cat((tensor_G.view(torch.uint8), share_P.to(torch.float8_e4m3fn).view(torch.uint8)))

    def decode_scales(self, scale_B: Tensor, counts: Sequence[int]) -> Tensor:
        first = 4 * len(counts)
        tensor_G = scale_B[:first].clone().view(torch.float32)  # a row may begin at any byte
        share_P = scale_B[first:].view(torch.float8_e4m3fn).float()
        return share_P.mul_(tensor_G[_groups(counts, share_P)]).mul_(4)  # 4 is the coding's scale

    def num_scale_bytes(self, counts: Sequence[int]) -> int:
        return sum(counts) + 4 * len(counts)


def _groups(counts: Sequence[int], beside_P: Tensor) -> Tensor:
    """The group of each block (int64, P)."""
    group_G = torch.arange(len(counts), device=beside_P.device)
    return group_G.repeat_interleave(torch.tensor(counts, dtype=torch.int64, device=beside_P.device))


REDUCER = NvFp4
