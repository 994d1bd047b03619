"""Codes of a few bits, packed without gaps."""
# N = elements, B = bytes

import torch
from torch import Tensor

from sage.ops import native, reference

_native = torch.ops.sage
native.register(
    "pack", lambda codes, bits: native.vector(codes, (codes.numel() * bits + 7) // 8, torch.uint8)
)
native.register("unpack", lambda bytes, bits, n: native.vector(bytes, n, torch.uint8))


def pack(codes_N: Tensor, bits: int) -> Tensor:
    """Codes (uint8) of 1 to 8 bits without gaps: code i starts at bit i·bits of the bytes, low bit first."""
    if native.takes("pack", codes_N, dtype=torch.uint8):
        return _native.pack.default(codes_N, bits)
    return reference.pack(codes_N, bits)


def unpack(bytes_B: Tensor, bits: int, n: int) -> Tensor:
    """Unpack n codes from `pack`'s bytes."""
    if native.takes("unpack", bytes_B, dtype=torch.uint8):
        return _native.unpack.default(bytes_B, bits, n)
    return reference.unpack(bytes_B, bits, n)
