"""fp8: 8-bit floats with a scale per block, by a two-way all-reduce (formats: Micikevicius et al., 2022)."""
# N = elements of the vector

from typing import Literal

import torch
from torch import Tensor

from .int8 import Int8

FORMATS = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}
"""The formats' names and dtypes."""


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
        self._dtype = FORMATS[format]
        self.largest = torch.finfo(self._dtype).max

    def to_bytes(self, codes_N: Tensor) -> Tensor:
        return codes_N.clamp_(-self.largest, self.largest).to(self._dtype).view(torch.uint8)

    def from_bytes(self, bytes_N: Tensor) -> Tensor:
        # A lookup table: torch's own conversion takes about five times as long.
        value_C = torch.arange(256, dtype=torch.uint8, device=bytes_N.device).view(self._dtype).float()
        return value_C.index_select(0, bytes_N.int())


REDUCER = Fp8
