"""Natural compression: each element rounded at random to a power of two (Horváth et al., 2019)."""
# N = elements of the vector, G = groups

from collections.abc import Mapping, Sequence
from typing import Unpack

import torch
from torch import Tensor

from sage.reduction import (
    MANTISSA,
    Buckets,
    Parts,
    RandomQuantiser,
    Rounding,
    Wire,
    natural_worth,
    ops,
    power_below,
    round_natural,
)

INFINITE = 0xFF << MANTISSA
"""The bits of infinity; magnitudes above are NaN."""
LARGEST = 0xFE << MANTISSA
"""The bits of the largest power of two, 2^127."""
LEVELS = 127
"""Powers of two, beside 0, that 7 bits can name."""


class Natural(RandomQuantiser):
    """Each |x| becomes the power of two below it or the one above it, at random so that the mean is x.

    This is the paper's natural compression: the higher power has the probability |x|/2^⌊log2 |x|⌋ − 1. The
    paper's code takes 9 bits, sign and exponent. Bytes each rank hands over:

    - with 9 `bits`, sign and exponent as a float32 has them: a byte an element, and a bit in whole bytes;
    - with 8, a form of our own: a byte an element, the sign and 7 bits, which name 0 and the 127 powers of
      two up to twice the largest one that is not above all elements of the group, and 4 a group for that one
      (`scales`).

    Args:
        bits: Of an element, 9 or 8.
    """

    def __init__(self, *, bits: int = 9, **rounding: Unpack[Rounding]) -> None:
        super().__init__(**rounding)
        if bits not in (8, 9):
            raise ValueError(f"bits={bits!r}: expected 8 or 9")
        self._bits = bits

    def encode(self, x_N: Tensor, sizes: Sequence[int], wire: Wire) -> Parts:
        x_N = x_N.float()
        if self._bits == 9:
            return {"values": torch.cat((self._exponents(x_N, wire), ops.pack_signs(x_N)))}
        groups = Buckets(sizes)
        scale_G = power_below(groups.norms(x_N, "max"))
        level_N = round_natural(groups.ratios(x_N, scale_G).div_(2), LEVELS, self.uniform(x_N, wire))
        sign_N = (x_N < 0).to(torch.uint8) << 7
        return {"values": sign_N.bitwise_or_(level_N.abs_().view(torch.uint8)), "scales": scale_G}

    def decode(self, parts: Mapping[str, Tensor], sizes: Sequence[int]) -> Tensor:
        n, values = sum(sizes), parts["values"]
        if self._bits == 9:
            magnitude_N = values[:n].int().bitwise_left_shift_(MANTISSA).view(torch.float32)
            return magnitude_N.mul_(ops.unpack_signs(values[n:], n))
        worth_C = 2 * natural_worth(torch.arange(LEVELS + 1, device=values.device), LEVELS)
        worth_N = torch.cat((worth_C, -worth_C)).index_select(0, values.int())
        return Buckets(sizes).scale_(worth_N, parts["scales"])

    def bytes_of(self, sizes: Sequence[int]) -> dict[str, int]:
        n = sum(sizes)
        return {"values": n + -(-n // 8)} if self._bits == 9 else {"values": n, "scales": 4 * len(sizes)}

    def _exponents(self, x_N: Tensor, wire: Wire) -> Tensor:
        """The exponents' 8 bits (uint8), one more where a draw carries over out of the mantissa.

        The mantissa is how far |x| is on the way from one power of two to the next, and, below the least
        exponent, on the way from 0. Of finite numbers none becomes infinite.
        """
        bits_N = ops.magnitude_bits(x_N)
        carried_N = self.draw(x_N, wire, MANTISSA).add_(bits_N).clamp_(max=LARGEST)
        # What is not finite keeps its exponent.
        torch.maximum(carried_N, bits_N.bitwise_and_(INFINITE), out=carried_N)
        return carried_N.bitwise_right_shift_(MANTISSA).to(torch.uint8)


REDUCER = Natural
