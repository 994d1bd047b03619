"""1-bit SGD: sends one bit per element and two mean values per layer (Seide et al., Interspeech 2014)."""
# N = elements of the vector, G = groups

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from sage.reduction import Parts, Quantiser, Wire, ops, per_group


class OneBitSgd(Quantiser):
    """Negative elements become their mean in the group; the others become the mean of the others.

    The quantiser is the paper's with threshold 0: the reconstruction values are the means of the elements on
    either side. It differs from the paper in two points. The paper has two values per column of a matrix;
    here there are two per group. The paper quantises the sum again on its way back; here the ranks' codes are
    gathered. It requires error feedback, which this paper introduced.

    Payload bytes per rank: 1 bit per element (`values`, in whole bytes), and 8 bytes per group: the mean of
    the negative elements and that of the others (`scales`).
    """

    def encode(self, x_N: Tensor, sizes: Sequence[int], wire: Wire) -> Parts:
        x_N = x_N.float()
        num_below_G = per_group(x_N < 0, sizes, torch.count_nonzero).long()
        num_other_G = num_below_G.new_tensor(sizes) - num_below_G
        below_G = per_group(x_N.clamp(max=0), sizes, torch.sum) / num_below_G.clamp_(min=1)
        other_G = per_group(x_N.clamp(min=0), sizes, torch.sum) / num_other_G.clamp_(min=1)
        return {"values": ops.pack_signs(x_N), "scales": torch.cat((below_G, other_G))}

    def decode(self, parts: Mapping[str, Tensor], sizes: Sequence[int]) -> Tensor:
        means_G2 = parts["scales"].view(2, -1).t().contiguous()
        bit_N = ops.unpack(parts["values"], 1, sum(sizes)).int()
        groups = zip(means_G2, bit_N.split(list(sizes)), strict=True)
        values = [means_2.index_select(0, bits) for means_2, bits in groups]
        return torch.cat(values or [means_G2.view(-1)])

    def bytes_of(self, sizes: Sequence[int]) -> dict[str, int]:
        return {"values": -(-sum(sizes) // 8), "scales": 8 * len(sizes)}


REDUCER = OneBitSgd
