"""Natural compression: rounds each element at random to a power of two (Horváth et al., 2019)."""
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
    RoundingOptions,
    Wire,
    natural_value,
    ops,
    power_below,
    round_natural,
)

INFINITE = 0xFF << MANTISSA
"""Bits of infinity; larger magnitude bits are NaN."""
LARGEST = 0xFE << MANTISSA
"""Bits of the largest power of two, 2^127."""
LEVELS = 127
"""Number of powers of two that 7 bits can encode besides 0."""


class Natural(RandomQuantiser):
    """Each |x| becomes the power of two below or above it, drawn at random so that the result is unbiased.

    This is the paper's natural compression: the higher power has probability |x|/2^⌊log2 |x|⌋ − 1. The
    paper's code takes 9 bits, sign and exponent. Payload bytes per rank:

    - 9 `bits` (sign and exponent of a float32): 1 byte and 1 bit per element, the bits in whole bytes.
    - 8 `bits` (our own format): 1 byte per element and 4 bytes per group (`scales`). Let P be the largest
      power of two that does not exceed the largest magnitude of the group; P is sent as the scale. The byte
      holds the sign and 7 bits, which encode 0 and the 127 powers of two up to 2·P.

    Args:
        bits: Bits per element, 9 or 8.

    Raises:
        ValueError: if `bits` is neither 8 nor 9.
    """

    def __init__(self, *, bits: int = 9, **rounding: Unpack[RoundingOptions]) -> None:
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
        value_C = 2 * natural_value(torch.arange(LEVELS + 1, device=values.device), LEVELS)
        value_N = torch.cat((value_C, -value_C)).index_select(0, values.int())
        return Buckets(sizes).scale_(value_N, parts["scales"])

    def bytes_of(self, sizes: Sequence[int]) -> dict[str, int]:
        n = sum(sizes)
        return {"values": n + -(-n // 8)} if self._bits == 9 else {"values": n, "scales": 4 * len(sizes)}

    def _exponents(self, x_N: Tensor, wire: Wire) -> Tensor:
        """The 8 exponent bits of each element (uint8), plus one where the draw carries out of the mantissa.

        The mantissa gives the position of |x| between one power of two and the next or, below the smallest
        exponent, between 0 and it. No finite number becomes infinite.
        """
        bits_N = ops.magnitude_bits(x_N)
        carried_N = self.draw(x_N, wire, MANTISSA).add_(bits_N).clamp_(max=LARGEST)
        # Infinity and NaN keep their exponent.
        torch.maximum(carried_N, bits_N.bitwise_and_(INFINITE), out=carried_N)
        return carried_N.bitwise_right_shift_(MANTISSA).to(torch.uint8)


REDUCER = Natural
