"""mxfp4: 4-bit floats, and for each 32 a power of two as the scale (OCP Microscaling formats, 2023)."""

from sage.reduction import ops

from ._microscaling import Mx

BLOCK = 32


class MxFp4(Mx):
    """Each element x becomes X times the 4-bit float nearest to x/X, where 32 elements share X.

    The format MXFP4 of the OCP Microscaling (MX) Specification v1.0 (Rouhani et al., 2023). Its values are
    those of E2M1: 0, ±0.5, ±1, ±1.5, ±2, ±3, ±4 and ±6. X = 2^(⌊log2 m⌋ − 2), and at least 2⁻¹²⁷, where m is
    the largest magnitude of the 32 elements. The error is at most X; what is above 6 in units of X becomes 6,
    with an error below 2·X, a quarter of m. Ties go to the even code. The exchange is that of `int8` and not
    part of the specification.

    Payload bytes per rank: W + 1 times the code of a share of 1/W of the vector, where W is the number of
    ranks. A code takes 4 bits per element, in whole bytes (`values`), and 1 byte per 32 elements (`scales`);
    each share and each group begins a new block.
    """

    exponent, mantissa = 2, 0
    coding = ops.Coding(ops.Codec.E2M1, bucket=BLOCK)


REDUCER = MxFp4
