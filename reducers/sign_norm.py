"""Sign and norm: sends signs and the L1 norm of each layer (Agarwal et al., MLSys 2022)."""
# N = elements of the vector, G = groups

from collections.abc import Sequence

from torch import Tensor

from sage.reduction import Parts, SignQuantiser, Wire, counts_of, ops


class SignNorm(SignQuantiser):
    """Mean over ranks of (‖g‖₁/n)·sign(g), for each group g of n elements.

    This is the mean of `efsignsgd` in the format of the utility study's SignAndNorm: zero counts as positive,
    and a bit is 1 for a negative element.

    Payload bytes per rank: 1 bit per element, over the whole vector in 4-byte words (`values`;
    `sage.ops.sign_words` by column), and 4 bytes per group for ‖g‖₁ (`scales`).
    """

    words = "column"

    def compress(self, grad_N: Tensor, residual_N: Tensor | None, sizes: Sequence[int], wire: Wire) -> Parts:
        norm_G = ops.statistics(grad_N, residual_N, sizes, ops.Kind.ABSOLUTE).sum_G.float()
        return self.encode_signs(grad_N, residual_N, sizes, norm_G)

    def sides(self, scales: Tensor, sizes: Sequence[int]) -> tuple[Tensor, Tensor]:
        return super().sides(scales / counts_of(sizes, scales).float(), sizes)


REDUCER = SignNorm
