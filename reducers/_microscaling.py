"""Blocks of small floats with a scale of 8 bits each: what mxfp8, mxfp4 and nvfp4 have in common."""
# N = elements of the vector, G = groups, P = blocks, B = bytes, W = payloads

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from sage.reduction import FusedQuantiser, Parts, Reduced, Wire, ops, payload_two_way, reduce_two_way


class Microscaled(FusedQuantiser):
    """Each element of a block becomes the nearest value of a small float, times the block's scale.

    A method defines its `coding` and how scales are encoded. The exchange is that of `int8`
    (`sage.reduction.two_way`): every rank reduces 1/W of the vector and encodes the mean again.
    """

    coding: ops.Coding

    def encode_scales(self, largest_P: Tensor, counts: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Encode the scales of blocks, and decode them.

        Args:
            largest_P: The largest magnitude of each block (float32); NaN if that is not finite.
            counts: Number of blocks of each group (G).

        Returns:
            Bytes (uint8, B), and what `decode_scales` makes of them; NaN must remain NaN.
        """
        raise NotImplementedError

    def decode_scales(self, scale_B: Tensor, counts: Sequence[int]) -> Tensor:
        """Decode what `coding` has as the scale of each block (float32, P)."""
        raise NotImplementedError

    def num_scale_bytes(self, counts: Sequence[int]) -> int:
        """Bytes of the scales of groups of these numbers of blocks."""
        return sum(counts)

    def compress(self, grad_N: Tensor, residual_N: Tensor | None, sizes: Sequence[int], wire: Wire) -> Parts:
        largest_P = ops.largest_of_blocks(grad_N, residual_N, sizes, self._block)
        signal_N = grad_N if residual_N is None else residual_N
        return self._encode(signal_N, largest_P, sizes, keep=residual_N is not None)

    def compress_signal(self, signal_N: Tensor, sizes: Sequence[int], wire: Wire) -> Parts:
        largest_P = ops.largest_of_blocks(None, signal_N, sizes, self._block)
        return self._encode(signal_N, largest_P, sizes, keep=True)

    def _encode(self, signal_N: Tensor, largest_P: Tensor, sizes: Sequence[int], *, keep: bool) -> Parts:
        counts = self._counts(sizes)
        scale_B, scale_P = self.encode_scales(largest_P, counts)
        codes_B = ops.quantise_to(signal_N, sizes, self.coding, scale_P, keep=keep)
        return {"values": codes_B, "scales": scale_B}

    def average(
        self,
        out_N: Tensor,
        rows: Mapping[str, Tensor],
        sizes: Sequence[int],
        *,
        divisor: int,
        added: bool = False,
    ) -> Tensor:
        counts, scales_WB = self._counts(sizes), rows["scales"]
        if len(scales_WB) == 1:
            scale_WP = self.decode_scales(scales_WB[0], counts)[None]
        else:
            scale_WP = scales_WB.new_empty(len(scales_WB), sum(counts), dtype=torch.float32)
            for scale_P, scale_B in zip(scale_WP, scales_WB, strict=True):
                scale_P.copy_(self.decode_scales(scale_B, counts))
        values_WB = rows["values"]
        return ops.average(out_N, values_WB, scale_WP, sizes, self.coding, divisor=divisor, added=added)

    def bytes_of(self, sizes: Sequence[int]) -> dict[str, int]:
        values = self.coding.num_bytes(sum(sizes))
        return {"values": values, "scales": self.num_scale_bytes(self._counts(sizes))}

    def forward(self, grad_N: Tensor, residual_N: Tensor | None, wire: Wire) -> Reduced:
        return reduce_two_way(self, grad_N, residual_N, self.sizes, wire)

    def payload(self, counts: list[int], rank: int) -> dict[str, int]:
        return payload_two_way(self, self.sizes, len(counts))

    @property
    def _block(self) -> int:
        assert self.coding.bucket is not None
        return self.coding.bucket

    def _counts(self, sizes: Sequence[int]) -> list[int]:
        return [-(-n // self._block) for n in sizes]


class Mx(Microscaled):
    """A format of the OCP Microscaling specification: the scale is a power of two in 8 bits (E8M0).

    X = 2^(⌊log2 m⌋ − e), where m is the largest magnitude of the block and 2^e the largest power of two of
    the format of the elements. It is stored as its exponent plus 127, and NaN as 255; if the formula gives
    less than 2⁻¹²⁷, X is that. The scale of the coding is 2^e·X, or 1.75 times it where that is the largest
    number of the format.
    """

    grouping = "model"
    exponent: int
    """e."""
    mantissa = 0x600000
    """The mantissa of the coding's scale, as bits of a float32: that of 1.75."""

    def encode_scales(self, largest_P: Tensor, counts: Sequence[int]) -> tuple[Tensor, Tensor]:
        bits_P = largest_P.view(torch.int32)
        biased_P = (bits_P >> 23).to(torch.uint8).clamp_(min=self.exponent)  # ⌊log2 m⌋ + 127; 255 for NaN
        scale_B = biased_P - _is_number(biased_P) * self.exponent
        scale_P = (bits_P & 0x7F800000).clamp_(min=self.exponent << 23).bitwise_or_(self.mantissa)
        return scale_B, scale_P.view(torch.float32).add_(largest_P - largest_P)  # 0 or NaN

    def decode_scales(self, scale_B: Tensor, counts: Sequence[int]) -> Tensor:
        scale_P = scale_B.int().bitwise_left_shift_(23).add_((self.exponent << 23) + self.mantissa)
        number_P = _is_number(scale_B).float()
        return scale_P.view(torch.float32).mul_(number_P / number_P)  # 1 or NaN


def _is_number(code_P: Tensor) -> Tensor:
    """0 where a code is 255, and 1 elsewhere (uint8, P): several times as fast as a comparison."""
    return (code_P + 1).clamp_(max=1)
