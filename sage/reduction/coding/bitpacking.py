"""Packing of bits into 32-bit words, first bit highest: the formats of BytePS's onebit and the utility study.

Words are int32 tensors, so that the ledger and the collectives handle whole words. The bytes of a word are in
little-endian order.
"""
# N = elements, V = words, B = bits, 32·V of them

from collections.abc import Sequence

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


def pack_signs_by_group(x_N: Tensor, sizes: Sequence[int]) -> Tensor:
    """One bit per element, 1 if it is negative; each group begins a new word (BytePS: onebit)."""
    bits = [torch.nn.functional.pad(bits, (0, -bits.numel() % WORD)) for bits in (x_N < 0).split(list(sizes))]
    return pack_words(torch.cat(bits) if bits else x_N < 0)


def unpack_signs_by_group(words_V: Tensor, sizes: Sequence[int]) -> Tensor:
    """−1 for each bit that is 1 and +1 for each that is 0 (float32, N), with the groups concatenated."""
    signs_B = ops.unpack_signs(_reversed(words_V).view(torch.uint8), WORD * words_V.numel(), scale=-1.0)
    padded = signs_B.split([WORD * num_words(n) for n in sizes])
    signs = [signs[:n] for signs, n in zip(padded, sizes, strict=True)]
    return signs[0] if len(signs) == 1 else torch.cat([signs_B[:0], *signs])


def pack_signs_in_columns(x_N: Tensor) -> Tensor:
    """One bit per element, 1 if it is negative; element r·V + j is bit 31 − r of word j.

    This is the sign format of the utility study (Agarwal et al., MLSys 2022): 32 rows of V elements, read by
    column.
    """
    bits_B = torch.nn.functional.pad((x_N < 0).view(torch.uint8), (0, -x_N.numel() % WORD))
    rows = bits_B.view(4, 8, -1)  # the highest byte's rows first
    while rows.shape[1] > 1:  # each pair of rows becomes one row with twice the bits
        rows = (rows[:, ::2] << 8 // rows.shape[1]).bitwise_or_(rows[:, 1::2])
    return rows.view(4, -1).flip(0).t().reshape(-1).view(torch.int32)


def unpack_signs_in_columns(words_V: Tensor, n: int) -> Tensor:
    """−1 for each of the n bits that is 1 and +1 for each that is 0 (float32)."""
    bytes_4V = words_V.contiguous().view(torch.int8).view(-1, 4).flip(1).t().contiguous()
    shifts = torch.arange(7, -1, -1, dtype=torch.int8, device=words_V.device)
    bits_48V = (bytes_4V[:, None] >> shifts[:, None]).bitwise_and_(1)
    return bits_48V.mul_(-2).add_(1).reshape(-1)[:n].float()


def _reversed(words_V: Tensor) -> Tensor:
    """Words with their bits in reverse order."""
    for i, mask in enumerate((0x55555555, 0x33333333, 0x0F0F0F0F, 0x00FF00FF, 0x0000FFFF)):
        words_V = (words_V >> (1 << i) & mask) | (words_V & mask) << (1 << i)
    return words_V
