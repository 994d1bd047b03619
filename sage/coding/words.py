"""Bits in words of 32, the first bit the highest: how BytePS, and the signs of Agarwal et al. (2022), travel.

Words are int32 tensors, so that the ledger and the collectives see whole words; a byte of a word lies where
a little-endian machine has it.
"""
# N = elements, V = words, B = bits, 32·V of them

from collections.abc import Sequence

import torch
from torch import Tensor

from sage import ops

WORD = 32


def num_words(bits: int) -> int:
    """How many words hold that many bits."""
    return -(-bits // WORD)


def pack_words(bits_B: Tensor) -> Tensor:
    """Bits (uint8 or bool, a multiple of 32) as words (int32).

    >>> pack_words(torch.tensor([False] * 30 + [True, False])).tolist()
    [2]
    """
    low_first_B = bits_B.to(torch.uint8).view(-1, WORD).flip(1).reshape(-1)
    return ops.pack(low_first_B, 1).view(torch.int32)


def unpack_words(words_V: Tensor) -> Tensor:
    """The bits (uint8) of words."""
    num = WORD * words_V.numel()
    return ops.unpack(words_V.contiguous().view(torch.uint8), 1, num).view(-1, WORD).flip(1).reshape(-1)


def pack_signs_by_group(x_N: Tensor, sizes: Sequence[int]) -> Tensor:
    """A bit for each element, 1 where it is below 0; each group begins a word (BytePS: onebit)."""
    bits = [torch.nn.functional.pad(bits, (0, -bits.numel() % WORD)) for bits in (x_N < 0).split(list(sizes))]
    return pack_words(torch.cat(bits) if bits else x_N < 0)


def unpack_signs_by_group(words_V: Tensor, sizes: Sequence[int]) -> Tensor:
    """−1 for each bit that is 1, and +1 for each that is 0, of the groups one after another."""
    padded = unpack_words(words_V).split([WORD * num_words(n) for n in sizes])
    bits = [bits[:n] for bits, n in zip(padded, sizes, strict=True)]
    return _signs(torch.cat(bits) if bits else unpack_words(words_V))


def pack_signs_in_columns(x_N: Tensor) -> Tensor:
    """A bit for each element, 1 where it is below 0; element r·V + j is bit 31 − r of word j.

    That is the wire of signs in the utility study (Agarwal et al., MLSys 2022): 32 rows of V elements, one
    above the other, read by column.
    """
    bits_B = torch.nn.functional.pad(x_N < 0, (0, -x_N.numel() % WORD))
    return pack_words(bits_B.view(WORD, -1).t().reshape(-1))


def unpack_signs_in_columns(words_V: Tensor, n: int) -> Tensor:
    """−1 for each of the n bits that is 1, and +1 for each that is 0."""
    return _signs(unpack_words(words_V).view(-1, WORD).t().reshape(-1)[:n])


def _signs(bits_N: Tensor) -> Tensor:
    return 1 - 2 * bits_N.float()
