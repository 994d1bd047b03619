"""mxfp8: 8-bit floats, and for each 32 a power of two as the scale (OCP Microscaling formats, 2023)."""

from typing import Literal

from sage.reduction import ops

from ._microscaling import Mx

FORMATS = {"e4m3": (ops.Codec.E4M3, 8), "e5m2": (ops.Codec.E5M2, 15)}
"""The formats' codecs, and the exponents of their largest numbers, 448 and 57,344."""
BLOCK = 32


class MxFp8(Mx):
    """Each element x becomes X times the 8-bit float nearest to x/X, where 32 elements share X.

    The format MXFP8 of the OCP Microscaling (MX) Specification v1.0 (Rouhani et al., 2023). X = 2^(⌊log2 m⌋ −
    e), and at least 2⁻¹²⁷, where m is the largest magnitude of the 32 elements. `e4m3` has 3 mantissa bits, e
    = 8 and 448 as its largest number; `e5m2` has 2 mantissa bits, e = 15 and 57,344. What is above the
    largest number in units of X becomes that number, with an error below m/8; ties go to the even code. The
    exchange is that of `int8` and not part of the specification.

    Payload bytes per rank: W + 1 times the code of a share of 1/W of the vector, where W is the number of
    ranks. A code takes 1 byte per element (`values`) and 1 byte per 32 elements (`scales`); each share and
    each group begins a new block.

    Args:
        format: Number of exponent and mantissa bits: e4m3 or e5m2.

    Raises:
        ValueError: if `format` is neither.
    """

    def __init__(self, *, format: Literal["e4m3", "e5m2"] = "e4m3") -> None:
        super().__init__()
        if format not in FORMATS:
            raise ValueError(f"format={format!r}: expected {' or '.join(FORMATS)}")
        codec, self.exponent = FORMATS[format]
        self.coding = ops.Coding(codec, bucket=BLOCK)


REDUCER = MxFp8
