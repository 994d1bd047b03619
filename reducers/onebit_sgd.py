"""1-bit SGD: one bit an element selects one of two means of its layer (Seide et al., 2014)."""
# N = elements of the vector, G = groups

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from sage.reduction import Parts, Quantiser, Wire, ops, per_group


class OneBitSgd(Quantiser):
    """Elements below 0 become the mean of these in their group, the others the mean of the others.

    The quantiser is the paper's with the threshold 0: the reconstruction values are the means of the elements
    on either side. It differs from the paper in two points: the paper has two values for each column of a
    matrix, here for each group; and the paper quantises the sum again on its way back, where here the ranks'
    codes are gathered. It is meant with error feedback, which this paper introduced. Bytes each rank hands
    over: a bit an element (`values`, in whole bytes), and 8 a group: the mean of the elements below 0 and
    that of the others (`scales`).
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
        worths = [means_2.index_select(0, bits) for means_2, bits in groups]
        return torch.cat(worths or [means_G2.view(-1)])

    def bytes_of(self, sizes: Sequence[int]) -> dict[str, int]:
        return {"values": -(-sum(sizes) // 8), "scales": 8 * len(sizes)}


REDUCER = OneBitSgd
