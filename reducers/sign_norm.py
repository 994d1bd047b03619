"""Sign and norm: sends signs and the L1 norm of each layer (Agarwal et al., MLSys 2022)."""
# N = elements of the vector, G = groups

from collections.abc import Mapping, Sequence

from torch import Tensor

from sage.reduction import FusedQuantiser, Parts, Wire, counts_of, ops


class SignNorm(FusedQuantiser):
    """Mean over ranks of (‖g‖₁/n)·sign(g), for each group g of n elements.

    This is the mean of `efsignsgd` in the format of the utility study's SignAndNorm: zero counts as positive,
    and a bit is 1 for a negative element.

    Payload bytes per rank: 1 bit per element, over the whole vector in 4-byte words (`values`;
    `sage.ops.sign_words` by column), and 4 bytes per group for ‖g‖₁ (`scales`).
    """

    def compress(self, grad_N: Tensor, residual_N: Tensor | None, sizes: Sequence[int], wire: Wire) -> Parts:
        norm_G = ops.statistics(grad_N, residual_N, sizes, ops.Kind.ABSOLUTE).sum_G.float()
        scale_G = self._scale(norm_G, sizes)
        signal_N = grad_N if residual_N is None else residual_N
        bits_B = ops.sign_bits(signal_N, sizes, -scale_G, scale_G, keep=residual_N is not None)
        return {"values": ops.sign_words(bits_B, sizes, by_column=True), "scales": norm_G}

    def average(
        self,
        out_N: Tensor,
        rows: Mapping[str, Tensor],
        sizes: Sequence[int],
        *,
        divisor: int,
        added: bool = False,
    ) -> Tensor:
        bytes_WB = ops.sign_bytes(rows["values"], sizes, by_column=True)
        scale_WG = self._scale(rows["scales"], sizes)
        return ops.mean_signs(out_N, bytes_WB, sizes, -scale_WG, scale_WG, divisor=divisor, added=added)

    def _scale(self, norms: Tensor, sizes: Sequence[int]) -> Tensor:
        """‖g‖₁/n of each group."""
        return norms / counts_of(sizes, norms).float()

    def bytes_of(self, sizes: Sequence[int]) -> dict[str, int]:
        return {"values": 4 * ops.num_words(sum(sizes)), "scales": 4 * len(sizes)}


REDUCER = SignNorm
