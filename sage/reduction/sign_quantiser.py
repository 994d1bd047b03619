"""Quantisers that send the sign of every element, and for each group the decoded value of each sign."""
# N = elements of the flat vector, G = groups, W = payloads

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

from torch import Tensor

from sage import ops
from sage.reduction.quantise import FusedQuantiser, Parts


class SignQuantiser(FusedQuantiser):
    """A quantiser that sends `values`, a sign per element, and `scales`, numbers of each group.

    A method computes the scales in `compress` and calls `encode_signs`.
    """

    words: ClassVar[Literal["none", "group", "column"]] = "none"
    """How `values` holds the signs: as `ops.sign_bits`, or as words by group or column (`ops.sign_words`)."""

    def sides(self, scales: Tensor, sizes: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return the decoded values of the negative elements and of the others, for each group.

        Args:
            scales: `scales` of one payload, or of W payloads in rows.
            sizes: Number of elements of each group (G).

        Returns:
            Two tensors of G numbers, or W×G.
        """
        return -scales, scales

    def encode_signs(
        self, grad_N: Tensor, residual_N: Tensor | None, sizes: Sequence[int], scales: Tensor
    ) -> Parts:
        """The parts of a complete signal: of the residual, which becomes the error, or of the gradient."""
        signal_N, keep = (grad_N, False) if residual_N is None else (residual_N, True)
        values = ops.sign_bits(signal_N, sizes, *self.sides(scales, sizes), keep=keep)
        if self.words != "none":
            values = ops.sign_words(values, sizes, by_column=self.words == "column")
        return {"values": values, "scales": scales}

    def average(
        self,
        out_N: Tensor,
        rows: Mapping[str, Tensor],
        sizes: Sequence[int],
        *,
        divisor: int,
        added: bool = False,
    ) -> Tensor:
        bytes_WB = rows["values"]
        if self.words != "none":
            bytes_WB = ops.sign_bytes(bytes_WB, sizes, by_column=self.words == "column")
        low_WG, high_WG = self.sides(rows["scales"], sizes)
        return ops.mean_signs(out_N, bytes_WB, sizes, low_WG, high_WG, divisor=divisor, added=added)

    def bytes_of(self, sizes: Sequence[int]) -> dict[str, int]:
        in_words = {"group": sum(map(ops.num_words, sizes)), "column": ops.num_words(sum(sizes))}
        values = -(-sum(sizes) // 8) if self.words == "none" else 4 * in_words[self.words]
        return {"values": values, "scales": 4 * len(sizes)}
