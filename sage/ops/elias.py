"""Elias delta streams of nonzero levels: the gap, sign and magnitude of each.

The format is that of BytePS's dithering, bit for bit, with the code of Elias (1975). The code of x ≥ 1, with
len = 1 + ⌊log2 x⌋ and z = ⌊log2 len⌋, is z zeros, then len in z + 1 bits, then the low len − 1 bits of x: 2z
+ len bits in all. A stream holds the nonzero levels of a vector. For each it stores the code of the index gap
from the previous one (from −1 for the first), a bit that is 1 if the level is negative, and the code of its
magnitude. The last word is padded with zeros.
"""
# N = elements, G = groups, V = words of 32 bits

from collections.abc import Sequence

import torch
from torch import Tensor

from sage.ops import native, reference_elias
from sage.ops.reference_elias import GREATEST as GREATEST
from sage.ops.reference_elias import encode as encode
from sage.ops.sums import bounds_of

_native = torch.ops.sage


def _fake_encode(levels: Tensor, bounds: Sequence[int]) -> tuple[Tensor, Tensor]:
    return native.unknown(levels, torch.int32)[0], native.vector(levels, len(bounds) - 1, torch.int32)


native.register("encode_elias", _fake_encode)
native.register("decode_elias_", lambda *_: None)


def encode_levels(levels_N: Tensor, sizes: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Encode each group of levels (integers, N) as a stream that begins a new word.

    The kernel encodes int8 and int32; other integers are encoded in plain torch.

    Returns:
        The words of all streams (int32, V), and the number of bits of each stream (int32, G).

    Raises:
        RuntimeError: if the streams have 2^31 bits or more, or a magnitude is 2^31 or more.
    """
    if any(native.takes("encode_elias", levels_N, dtype=dtype) for dtype in (torch.int8, torch.int32)):
        return _native.encode_elias.default(levels_N, bounds_of(sizes))
    return reference_elias.encode_levels(levels_N, sizes)


def decode_levels(
    words_V: Tensor, bits_G: Tensor, sizes: Sequence[int], dtype: torch.dtype = torch.int64
) -> Tensor:
    """Decode the streams of all groups to their levels (N), concatenated.

    Args:
        words_V: The words of all streams (int32).
        bits_G: The number of bits of each stream (int32).
        sizes: Number of elements of each group.
        dtype: Type of the levels. The kernel decodes to float32 and int8; others are decoded in plain torch.

    Raises:
        RuntimeError: if the words are not such streams, if an element is outside its group, or if a level is
            outside int8 with that dtype.
    """
    if dtype in (torch.float32, torch.int8):
        levels_N = words_V.new_empty(sum(sizes), dtype=dtype)
        if native.takes("decode_elias_", levels_N, words_V, bits_G, dtype=dtype):
            _native.decode_elias_.default(levels_N, words_V, bits_G, bounds_of(sizes))
            return levels_N
    return reference_elias.decode_levels(words_V, bits_G, sizes, dtype)
