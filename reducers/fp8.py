"""fp8: 8-bit floats with a scale per block, by a two-way all-reduce (formats: Micikevicius et al., 2022)."""

from typing import Literal

from sage.reduction import ops

from .int8 import Int8

FORMATS = {"e4m3": ops.Codec.E4M3, "e5m2": ops.Codec.E5M2}
"""The formats' names and codes."""


class Fp8(Int8):
    """As `int8`, but each element x becomes the 8-bit float nearest to x·M/s.

    s is the largest magnitude in the block and M the largest number of the format. Only the formats are those
    of Micikevicius et al., 2022: `e4m3` has 3 mantissa bits and M = 448, `e5m2` has 2 mantissa bits and M =
    57,344. The blocks and the exchange are ours. Payload bytes per rank: as `int8`.

    Args:
        format: Number of exponent and mantissa bits: e4m3 or e5m2.
        block: Number of elements that share a scale, 1 or more.

    Raises:
        ValueError: if an option is out of range.
    """

    def __init__(self, *, format: Literal["e4m3", "e5m2"] = "e4m3", block: int = 256) -> None:
        super().__init__(block=block)
        if format not in FORMATS:
            raise ValueError(f"format={format!r}: expected {' or '.join(FORMATS)}")
        self.coding = ops.Coding(FORMATS[format], bucket=block)


REDUCER = Fp8
