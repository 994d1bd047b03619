"""Packing of bits into 32-bit words, first bit highest: the formats of BytePS's onebit and the utility study.

Words are int32 tensors, so that the ledger and the collectives handle whole words. The bytes of a word are in
little-endian order.
"""
# N = elements, V = words, B = bits, 32·V of them

import torch
from torch import Tensor

from sage import ops

WORD = 32
"""Bits per word."""


def num_words(bits: int) -> int:
    """Number of words that hold `bits` bits."""
    return -(-bits // WORD)


def pack_words(bits_B: Tensor) -> Tensor:
    """Pack bits (uint8 or bool, a multiple of 32) into words (int32).

    >>> pack_words(torch.tensor([False] * 30 + [True, False])).tolist()
    [2]
    """
    return _reversed(ops.pack(bits_B.view(torch.uint8), 1).view(torch.int32))


def unpack_words(words_V: Tensor) -> Tensor:
    """Unpack words to bits (uint8, 32·V)."""
    return ops.unpack(_reversed(words_V).view(torch.uint8), 1, WORD * words_V.numel())


def _reversed(words_V: Tensor) -> Tensor:
    """Words with their bits in reverse order."""
    for i, mask in enumerate((0x55555555, 0x33333333, 0x0F0F0F0F, 0x00FF00FF, 0x0000FFFF)):
        words_V = (words_V >> (1 << i) & mask) | (words_V & mask) << (1 << i)
    return words_V
