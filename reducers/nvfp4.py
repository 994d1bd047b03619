"""nvfp4: 4-bit floats, for each 16 an 8-bit float as the scale, and one float32 a tensor (NVIDIA, 2025)."""
# P = blocks, B = bytes

from collections.abc import Sequence

from torch import Tensor

from sage.reduction import ops

from ._microscaling import Microscaled

BLOCK = 16


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

    def encode_scales(self, largest_P: Tensor, counts: Sequence[int]) -> tuple[Tensor, Tensor]:
        return ops.encode_tensor_scales(largest_P, counts)

    def decode_scales(self, scale_B: Tensor, counts: Sequence[int]) -> Tensor:
        return ops.decode_tensor_scales(scale_B, counts)

    def num_scale_bytes(self, counts: Sequence[int]) -> int:
        return sum(counts) + 4 * len(counts)


REDUCER = NvFp4
