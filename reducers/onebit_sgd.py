"""1-bit SGD: a bit an element, which of two means of its layer it is near (Seide et al., 2014)."""
# N = elements of the vector, G = groups

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from sage import ops
from sage.coding.quantise import Parts, Quantiser, per_group, spread
from sage.comm.wire import Wire


class OneBitSgd(Quantiser):
    """Elements below 0 become the mean of these in their group, the others the mean of the others.

    Meant with error feedback, which this paper brought in; its groups are a matrix' columns. Bytes each rank
    hands over: a bit an element (`values`, in whole bytes), and 8 a group: the mean of those below 0 and of
    the others (`scales`).
    """

    def encode(self, x_N: Tensor, sizes: Sequence[int], wire: Wire) -> Parts:
        x_N = x_N.float()
        below_G = per_group(x_N, sizes, lambda x: _mean(x.clamp(max=0), x < 0))
        other_G = per_group(x_N, sizes, lambda x: _mean(x.clamp(min=0), ~(x < 0)))
        return {"values": ops.pack_signs(x_N), "scales": torch.cat((below_G, other_G))}

    def decode(self, parts: Mapping[str, Tensor], sizes: Sequence[int]) -> Tensor:
        below_G, other_G = parts["scales"].chunk(2)
        is_other_N = ops.unpack(parts["values"], 1, sum(sizes)) > 0
        return torch.where(is_other_N, spread(other_G, sizes), spread(below_G, sizes))

    def bytes_of(self, sizes: Sequence[int]) -> dict[str, int]:
        return {"values": -(-sum(sizes) // 8), "scales": 8 * len(sizes)}


def _mean(x: Tensor, is_in: Tensor) -> Tensor:
    """The mean of those that are in, the others being 0; 0 of none."""
    return x.sum() / is_in.sum().clamp_(min=1)


REDUCER = OneBitSgd
