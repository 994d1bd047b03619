"""Plain-torch reference of `sage.ops.random_bits`, and of its generator."""
# N = elements, C = counters

from collections.abc import Sequence

import torch
from torch import Tensor

TILE = 128
"""Positions that share 16 counters; see csrc/cpu/philox.h for the order of their bits."""
ROUNDS = 10
FACTORS = (0xD2511F53, 0xCD9E8D57)
BUMPS = (0x9E3779B9, 0xBB67AE85)
WORD = 0xFFFFFFFF


def philox(counter_C: Tensor, key: int) -> Tensor:
    """The four 32-bit words of each counter (int64, C×4).

    >>> [hex(word) for word in philox(torch.tensor([0]), 0)[0].tolist()]
    ['0x6627e8d5', '0xe169c58d', '0xbc57ac4c', '0x9b00dbd8']
    """
    x0, x1 = counter_C & WORD, counter_C >> 32 & WORD
    x2 = x3 = torch.zeros_like(counter_C)
    keys = [key & WORD, key >> 32 & WORD]
    for _ in range(ROUNDS):
        high0, low0 = _product(x0, FACTORS[0])
        high1, low1 = _product(x2, FACTORS[1])
        x0, x1, x2, x3 = high1 ^ x1 ^ keys[0], low1, high0 ^ x3 ^ keys[1], low0
        keys = [key + bump & WORD for key, bump in zip(keys, BUMPS, strict=True)]
    return torch.stack((x0, x1, x2, x3), 1)


def _product(x: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    """The high and the low 32 bits of products of 32-bit numbers; int64 keeps all 64 bits of a product."""
    product = x * factor
    return product >> 32 & WORD, product & WORD


def random_bits_(out_N: Tensor, key: int, starts: Sequence[int], firsts: Sequence[int]) -> Tensor:
    """Write 16 random bits for each element, whose positions are as in `sage.ops.Positions`."""
    for start, stop, first in zip(starts, (*starts[1:], out_N.numel()), firsts, strict=True):
        _write(out_N[start:stop], key, first)
    return out_N


def _write(out_N: Tensor, key: int, first: int) -> None:
    """Write the bits of the positions [first, first + N)."""
    tiles = range(first // TILE, -(-(first + out_N.numel()) // TILE))
    counter_C = torch.arange(16 * tiles.start, 16 * tiles.stop, device=out_N.device)
    word_TL4 = philox(counter_C, key).view(-1, 16, 4)
    half_TL42 = torch.stack((word_TL4 & 0xFFFF, word_TL4 >> 16), 3)
    bits_N = half_TL42.permute(0, 2, 3, 1).reshape(-1)
    skip = first - tiles.start * TILE
    out_N.copy_(bits_N[skip : skip + out_N.numel()])
