"""The codecs of the quantisers: the values that their codes represent."""
# G = groups

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum


class Codec(IntEnum):
    """The values that codes represent. s is the number of levels above 0; random rounding is unbiased.

    A level is drawn with 16 random bits, so that the probability of either neighbour deviates from the exact
    one by 2⁻¹⁷ at most, and the expectation by 2⁻¹⁷ of the distance between them.
    """

    INT8 = 0
    """The nearest of −127 … 127, of which 127 is the scale; ties to even."""
    E4M3 = 1
    """The nearest 8-bit float (4 exponent and 3 mantissa bits); the largest, 448, is the scale, also for an
    element above it. Ties to even."""
    E5M2 = 2
    """The nearest 8-bit float (5 exponent and 2 mantissa bits); the largest, 57,344, is the scale."""
    LINEAR = 3
    """One of −s … s at random, of which s is the scale, as the number above −s, in ⌈log2(2s + 1)⌉ bits."""
    NATURAL = 4
    """0 or ± one of the powers of two 2^(1−s), …, 1/2, 1 of the scale at random; stored as `LINEAR`."""
    POWER8 = 5
    """Sign, and 0 or one of 127 powers of two at random in 7 bits; the highest is twice the scale."""
    POWER9 = 6
    """The exponent bits of a float32 rounded at random to a power of two; behind all of them the sign bits,
    set for an element that is not below 0. No scale: those of the buckets are not used."""
    E2M1 = 7
    """The nearest 4-bit float (2 exponent bits, 1 mantissa bit): 0, 0.5, 1, 1.5, 2, 3, 4 or 6, of which 4 is
    the scale. So an element may be one and a half times it; above that it becomes 6. Ties to even."""
    TREE = 8
    """Sign, and the nearest of the 128 magnitudes of `sage.ops.reference_tree`, multiples of the scale. In a
    bucket whose scale is infinite, what is finite becomes NaN."""


@dataclass(frozen=True)
class Coding:
    """A codec, its number of levels and the length of its buckets."""

    codec: Codec
    levels: int = 1
    """s, from 1 to 127 (`LINEAR`) or to 31 (`NATURAL`); the others have no choice."""
    bucket: int | None = None
    """Elements that share a scale; every group begins a new bucket. None: all of a group."""

    @property
    def bits(self) -> int:
        """Bits of a code: 8, 4 (`E2M1`), or ⌈log2(2s + 1)⌉."""
        if self.codec is Codec.E2M1:
            return 4
        return (2 * self.levels).bit_length() if self.codec in (Codec.LINEAR, Codec.NATURAL) else 8

    def num_buckets(self, sizes: Sequence[int]) -> int:
        """Number of buckets that groups of these sizes are divided into."""
        return len(sizes) if self.bucket is None else sum(-(-n // self.bucket) for n in sizes)

    def num_bytes(self, n: int) -> int:
        """Bytes of the codes of n elements."""
        return -(-n * self.bits // 8) + (-(-n // 8) if self.codec is Codec.POWER9 else 0)
