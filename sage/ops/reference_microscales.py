"""Plain-torch reference of `sage.ops.microscales`, which documents each function."""
# N = elements of the flat vector, G = groups, P = blocks, B = bytes

from collections.abc import Sequence

import torch
from torch import Tensor

LARGEST, LARGEST_SHARE = 6.0, 448.0
"""The largest numbers of E2M1 and of E4M3."""


def largest_of_blocks(signal_N: Tensor, added_N: Tensor | None, sizes: Sequence[int], block: int) -> Tensor:
    """Accumulate, then reduce the rows of whole blocks, and what is left of each group."""
    if added_N is not None:
        signal_N.add_(added_N)
    if all(n % block == 0 for n in sizes[:-1]):
        sizes = [signal_N.numel()]
    found = [signal_N.new_empty(0)]
    for x in signal_N.split(list(sizes)):
        whole = x.numel() // block * block
        found.append(x[:whole].view(-1, block).abs().amax(1))
        if whole < x.numel():
            found.append(x[whole:].abs().amax(0, keepdim=True))
    largest_P = torch.cat(found).float()
    return torch.where(largest_P.isfinite(), largest_P, torch.nan)


def encode_tensor_scales(largest_P: Tensor, counts: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Find the largest of each group, divide, cast; a division by a number would multiply by its inverse."""
    finite_P = torch.where(largest_P.isfinite(), largest_P, 0.0)
    group_P = _groups(counts, largest_P)
    largest_G = finite_P.new_zeros(len(counts)).scatter_reduce_(0, group_P, finite_P, "amax")
    tensor_G = largest_G / largest_G.new_full((), LARGEST * LARGEST_SHARE)
    share_P = largest_P / largest_P.new_full((), LARGEST) / tensor_G[group_P]
    share_P = share_P.nan_to_num_(0.0).clamp_(max=LARGEST_SHARE)  # 0 / 0 where all are 0 or denormal
    share_P = torch.where(largest_P.isnan(), largest_P, share_P)
    bytes_B = torch.cat((tensor_G.view(torch.uint8), share_P.to(torch.float8_e4m3fn).view(torch.uint8)))
    return bytes_B, decode_tensor_scales(bytes_B, counts)


def decode_tensor_scales(bytes_B: Tensor, counts: Sequence[int]) -> Tensor:
    """Cast, and multiply by the number of the group."""
    first = 4 * len(counts)
    tensor_G = bytes_B[:first].clone().view(torch.float32)  # a row may begin at any byte
    share_P = bytes_B[first:].view(torch.float8_e4m3fn).float()
    return share_P.mul_(tensor_G[_groups(counts, share_P)]).mul_(4)  # 4 is the coding's scale


def _groups(counts: Sequence[int], beside_P: Tensor) -> Tensor:
    """The group of each block (int64, P)."""
    group_G = torch.arange(len(counts), device=beside_P.device)
    return group_G.repeat_interleave(torch.tensor(counts, dtype=torch.int64, device=beside_P.device))
