"""fp8: each block scaled to the range of an 8-bit float, coded in both halves of an all-reduce."""
# N = elements of the vector

from typing import Literal

import torch
from torch import Tensor

from .int8 import Int8

FORMATS = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}


class Fp8(Int8):
    """As `int8`, each element x becoming the 8-bit float nearest to x·M/s, M being the largest there is.

    s is the largest magnitude in the block. The formats alone are those of Micikevicius et al., 2022: `e4m3`
    has 3 bits of mantissa and M = 448, `e5m2` 2 bits and M = 57,344; blocks and exchange are ours. Bytes each
    rank hands over: as `int8`.

    Args:
        format: The numbers of exponent and mantissa bits, as e4m3.
        block: Elements that share a scale, 1 or more.
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
        # Looked up, as torch's own conversion takes some five times as long.
        worth_C = torch.arange(256, dtype=torch.uint8, device=bytes_N.device).view(self._dtype).float()
        return worth_C.index_select(0, bytes_N.int())


REDUCER = Fp8
