"""Natural compression: rounds each element at random to a power of two (Horváth et al., 2019)."""
# N = elements of the vector, G = groups

from collections.abc import Mapping, Sequence
from typing import Unpack

import torch
from torch import Tensor

from sage.reduction import FusedQuantiser, Parts, RandomQuantiser, RoundingOptions, Wire, ops

EXPONENTS = ops.Coding(ops.Codec.POWER9, bucket=16_384)
"""9 bits; the bucket has no scale, but its elements stay in the cache between the kernel's two passes."""
POWERS = ops.Coding(ops.Codec.POWER8)
"""8 bits."""


class Natural(RandomQuantiser, FusedQuantiser):
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

    decides_by = "element"

    def __init__(self, *, bits: int = 9, **rounding: Unpack[RoundingOptions]) -> None:
        super().__init__(**rounding)
        if bits not in (8, 9):
            raise ValueError(f"bits={bits!r}: expected 8 or 9")
        self._bits = bits

    def compress(self, grad_N: Tensor, residual_N: Tensor | None, sizes: Sequence[int], wire: Wire) -> Parts:
        if self._bits == 9:
            key, positions = self.next_key(wire), self.positions(grad_N)
            codes_B, _ = ops.quantise(grad_N, residual_N, sizes, EXPONENTS, key=key, positions=positions)
            return {"values": codes_B}
        largest_G = ops.statistics(grad_N, residual_N, sizes, ops.Kind.LARGEST).largest_G.float()
        scale_G = power_below(largest_G)
        signal_N, keep = (grad_N, False) if residual_N is None else (residual_N, True)
        key, positions = self.next_key(wire), self.positions(grad_N)
        codes_N = ops.quantise_to(signal_N, sizes, POWERS, scale_G, key=key, positions=positions, keep=keep)
        return {"values": codes_N, "scales": scale_G}

    def average(
        self,
        out_N: Tensor,
        rows: Mapping[str, Tensor],
        sizes: Sequence[int],
        *,
        divisor: int,
        added: bool = False,
    ) -> Tensor:
        values = rows["values"]
        if self._bits == 9:
            none_W0 = torch.zeros(len(values), EXPONENTS.num_buckets(sizes), device=values.device)
            return ops.average(out_N, values, none_W0, sizes, EXPONENTS, divisor=divisor, added=added)
        return ops.average(out_N, values, rows["scales"], sizes, POWERS, divisor=divisor, added=added)

    def bytes_of(self, sizes: Sequence[int]) -> dict[str, int]:
        n = sum(sizes)
        return {"values": n + -(-n // 8)} if self._bits == 9 else {"values": n, "scales": 4 * len(sizes)}


def power_below(x: Tensor) -> Tensor:
    """Largest power of two that does not exceed x ≥ 0, exactly; 0, NaN and infinity are unchanged."""
    mantissa = torch.frexp(x).mantissa
    return torch.where((x > 0) & x.isfinite(), x / (2 * mantissa), x)


REDUCER = Natural
