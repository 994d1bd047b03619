"""1-bit SGD: sends one bit per element and two mean values per layer (Seide et al., Interspeech 2014)."""
# N = elements of the vector, G = groups

from collections.abc import Sequence

import torch
from torch import Tensor

from sage.reduction import Parts, SignQuantiser, Wire, counts_of, ops


class OneBitSgd(SignQuantiser):
    """Negative elements become their mean in the group; the others become the mean of the others.

    The quantiser is the paper's with threshold 0: the reconstruction values are the means of the elements on
    either side. It differs from the paper in two points. The paper has two values per column of a matrix;
    here there are two per group. The paper quantises the sum again on its way back; here the ranks' codes are
    gathered. It requires error feedback, which this paper introduced.

    Payload bytes per rank: 1 bit per element (`values`, in whole bytes), and 8 bytes per group: the mean of
    the negative elements and that of the others (`scales`).
    """

    def compress(self, grad_N: Tensor, residual_N: Tensor | None, sizes: Sequence[int], wire: Wire) -> Parts:
        statistics = ops.statistics(grad_N, residual_N, sizes, ops.Kind.SIDES)
        below_G = (statistics.sum_G / statistics.below_G.clamp(min=1)).float()
        num_other_G = (counts_of(sizes, statistics.sum_G) - statistics.below_G).clamp_(min=1)
        other_G = (statistics.other_G / num_other_G).float()
        return self.encode_signs(grad_N, residual_N, sizes, torch.cat((below_G, other_G)))

    def sides(self, scales: Tensor, sizes: Sequence[int]) -> tuple[Tensor, Tensor]:
        below_G, other_G = (means.contiguous() for means in scales.chunk(2, -1))
        return below_G, other_G

    def bytes_of(self, sizes: Sequence[int]) -> dict[str, int]:
        return {"values": -(-sum(sizes) // 8), "scales": 8 * len(sizes)}


REDUCER = OneBitSgd
