"""Dithering: rounds each element at random to one of a few linear or natural levels (BytePS)."""
# N = elements of the vector, G = groups, P = buckets

from collections.abc import Mapping, Sequence
from typing import Literal, Unpack

import torch
from torch import Tensor

from sage.reduction import (
    LevelQuantiser,
    Parts,
    RandomQuantiser,
    RoundingOptions,
    Wire,
    elias,
    ops,
)

Norm = Literal["max", "l2"]
"""What elements are divided by: the largest magnitude, or the Euclidean norm."""
CODECS = {"linear": ops.Codec.LINEAR, "natural": ops.Codec.NATURAL}
NORMS = {"max": ops.Kind.LARGEST, "l2": ops.Kind.SQUARES}
MOST_LEVELS = {"linear": 127, "natural": 31}
"""Limits of s: a linear level must fit in a byte, the number of a natural level in an Elias code."""


class Dithering(RandomQuantiser, LevelQuantiser):
    """Each element becomes sign(x)·‖x‖·level, the level being drawn from the two neighbours of |x|/‖x‖.

    The probabilities make the result unbiased: its expectation is x. The s levels above 0 are 1/s, 2/s, …, 1
    (`linear`: QSGD, Alistarh et al., 2017, section 3.1), or 2^(1−s), …, 1/2, 1 (`natural`: natural dithering,
    Horváth et al., 2019). The levels, the format `elias` and the defaults are those of BytePS's dithering and
    its guide. With these defaults `l2` with error feedback diverges, as BytePS states. The random number
    generator is our own. Buckets and the format `packed` are not in BytePS.

    Payload bytes per rank: 4 for the norm of each bucket (`scales`), and as `values`, depending on the
    coding:

    - `packed`: ⌈log2(2s + 1)⌉ bits per element, in whole bytes: the signed level plus s.
    - `elias`: for each group a stream of 4-byte words in which only nonzero levels take bits
      (`sage.ops.elias`; for a natural level the integer 2^(s−1) times its value is encoded). 4
      bytes per group hold its length in bits and 24 bytes the lengths of all parts (`sizes`). This is
      BytePS's format; BytePS's partition is a group here.

    Args:
        levels: Number of levels s above 0, from 1 to 127 (`linear`) or to 31 (`natural`).
        partition: Spacing of the levels: even (`linear`), or each twice the one below (`natural`).
        norm: Norm that elements are divided by: the largest magnitude (`max`), or Euclidean (`l2`).
        bucket: Number of elements that share a norm, 1 or more; by default all elements of a group.
        coding: Format of the levels: fixed width (`packed`) or Elias codes (`elias`).

    Raises:
        ValueError: if an option is out of range.
    """

    def __init__(
        self,
        *,
        levels: int = 2,
        partition: Literal["linear", "natural"] = "linear",
        norm: Norm = "l2",
        bucket: int | None = None,
        coding: Literal["packed", "elias"] = "elias",
        **rounding: Unpack[RoundingOptions],
    ) -> None:
        super().__init__(**rounding)
        for name, value, allowed in (
            ("partition", partition, ("linear", "natural")),
            ("norm", norm, ("max", "l2")),
            ("coding", coding, ("packed", "elias")),
        ):
            if value not in allowed:
                raise ValueError(f"{name}={value!r}: expected {' or '.join(allowed)}")
        if not 1 <= levels <= MOST_LEVELS[partition]:
            raise ValueError(
                f"levels={levels!r} with partition={partition!r}: expected 1 to {MOST_LEVELS[partition]}"
            )
        if bucket is not None and bucket < 1:
            raise ValueError(f"bucket={bucket!r}: expected 1 element or more, or none for the whole group")
        self._norm: Norm = norm
        self.coding = ops.Coding(CODECS[partition], levels, bucket)
        self.even = coding == "packed"
        if norm == "l2":
            self.precision = 2.0**-12  # an l2 norm is up to sqrt(n) times the largest of n elements

    def compress(self, grad_N: Tensor, residual_N: Tensor | None, sizes: Sequence[int], wire: Wire) -> Parts:
        codes_B, norm_P = ops.quantise(
            grad_N,
            residual_N,
            sizes,
            self.coding,
            norm=NORMS[self._norm],
            key=self.next_key(wire),
            positions=self.positions(grad_N),
        )
        if self.even:
            return {"values": codes_B, "scales": norm_P}
        level_N = ops.unpack(codes_B, self.coding.bits, grad_N.numel()).view(torch.int8)
        level_N -= self.coding.levels
        words_V, bits_G = elias.encode_levels(self._numbers(level_N), sizes)
        return {"values": words_V, "sizes": bits_G, "scales": norm_P}

    def average(
        self,
        out_N: Tensor,
        rows: Mapping[str, Tensor],
        sizes: Sequence[int],
        *,
        divisor: int,
        added: bool = False,
    ) -> Tensor:
        if not self.even:
            streams = zip(rows["values"], rows["sizes"], strict=True)
            codes_WB = torch.stack([self._codes(words_V, bits_G, sizes) for words_V, bits_G in streams])
            rows = {"values": codes_WB, "scales": rows["scales"]}
        return super().average(out_N, rows, sizes, divisor=divisor, added=added)

    def bytes_of(self, sizes: Sequence[int]) -> dict[str, int] | None:
        if not self.even:
            return None
        scales = 4 * self.coding.num_buckets(sizes)
        return {"values": self.coding.num_bytes(sum(sizes)), "scales": scales}

    def _codes(self, words_V: Tensor, bits_G: Tensor, sizes: Sequence[int]) -> Tensor:
        """The codes (uint8, B) of a stream."""
        levels = self.coding.levels
        if self.coding.codec is ops.Codec.LINEAR:
            level_N = elias.decode_levels(words_V, bits_G, sizes, dtype=torch.int8)
            codes_N = level_N.view(torch.uint8).add_(levels)  # modulo 256: -s becomes 0
        else:
            number_N = elias.decode_levels(words_V, bits_G, sizes, dtype=torch.float32)
            codes_N = number_N.frexp().exponent.copysign(number_N).add_(levels).to(torch.uint8)
        return ops.pack(codes_N, self.coding.bits)

    def _numbers(self, level_N: Tensor) -> Tensor:
        """The integers that the Elias code encodes: linear levels, or ±2^(level − 1) for natural levels."""
        if self.coding.codec is ops.Codec.LINEAR:
            return level_N
        return level_N.sign().int() << (level_N.abs() - 1).clamp_(min=0)


REDUCER = Dithering
