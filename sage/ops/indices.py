"""Codes of ascending indices with fewer than 32 bits: gaps, or a bitmap."""
# N = elements of the flat vector, K = indices, B = bytes

import torch
from torch import Tensor

from sage.ops import native, reference

_native = torch.ops.sage
native.register("encode_gaps", lambda indices: native.unknown(indices, torch.uint8)[0])
native.register("decode_gaps", lambda bytes, num: native.vector(bytes, num, torch.int32))
native.register("encode_bitmap", lambda indices, n: native.vector(indices, (n + 7) // 8, torch.uint8))
native.register("decode_bitmap", lambda bytes: native.unknown(bytes, torch.int32)[0])


def encode_gaps(at_K: Tensor) -> Tensor:
    """Encode ascending indices (int32) as bytes: the gaps between them, 7 bits per byte (LEB128).

    >>> encode_gaps(torch.tensor([0, 1, 130, 1000], dtype=torch.int32)).tolist()
    [0, 0, 128, 1, 229, 6]
    """
    if native.takes("encode_gaps", at_K, dtype=torch.int32):
        return _native.encode_gaps.default(at_K)
    return reference.encode_gaps(at_K)


def decode_gaps(bytes_B: Tensor, num: int) -> Tensor:
    """Decode `num` indices (int32) from `encode_gaps`'s bytes."""
    if native.takes("decode_gaps", bytes_B, dtype=torch.uint8):
        return _native.decode_gaps.default(bytes_B, num)
    return reference.decode_gaps(bytes_B, num)


def encode_bitmap(at_K: Tensor, n: int) -> Tensor:
    """Encode indices (int32) as one bit per element of n: shorter than gaps above a density of about 1/8."""
    if native.takes("encode_bitmap", at_K, dtype=torch.int32):
        return _native.encode_bitmap.default(at_K, n)
    return reference.encode_bitmap(at_K, n)


def decode_bitmap(bytes_B: Tensor) -> Tensor:
    """Decode indices (int32, ascending) from `encode_bitmap`'s bytes."""
    if native.takes("decode_bitmap", bytes_B, dtype=torch.uint8):
        return _native.decode_bitmap.default(bytes_B)
    return reference.decode_bitmap(bytes_B)


def encode_indices(at_K: Tensor, n: int) -> Tensor:
    """Encode ascending indices (int32) below n as bytes: gaps, or the bitmap if it is not longer.

    >>> encode_indices(torch.tensor([0, 1, 130, 1000], dtype=torch.int32), 8000).numel()
    6
    >>> encode_indices(torch.arange(8000, dtype=torch.int32), 8000).numel()
    1000
    """
    gaps_B = encode_gaps(at_K)
    return gaps_B if gaps_B.numel() < -(-n // 8) else encode_bitmap(at_K, n)


def decode_indices(bytes_B: Tensor, n: int) -> Tensor:
    """Decode indices (int32, ascending) below n from `encode_indices`'s bytes."""
    if bytes_B.numel() >= -(-n // 8):
        return decode_bitmap(bytes_B)
    return decode_gaps(bytes_B, int((bytes_B < 0x80).sum()))  # the last byte of each gap is below 128
