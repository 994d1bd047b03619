"""onebit: signs in words of 32, times the mean of the magnitudes, one way or two ways (BytePS)."""
# N = elements of the vector, G = groups

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from sage.coding import words
from sage.coding.levels import Buckets
from sage.coding.quantise import Parts, Quantiser, all_finite, per_group
from sage.coding.served import payload_served, reduce_served
from sage.comm.wire import Wire
from sage.reduce import Reduced


class OneBit(Quantiser):
    """Each element becomes scale·sign(x), with scale = mean|x| of its group; zero counts as positive.

    A group is what a partition is in BytePS: 32 signs in a word of 4 bytes, the first one the highest bit, 1
    where an element is below 0 (`values`; each group begins a word), and 4 for the scale (`scales`). With
    `exchange=gather` these are the bytes each rank hands over.

    With `ps` codes go two ways: to a server, and from it, which codes the mean again. Every rank serves a Wth
    of the vector, W being the number of ranks (`sage.coding.served`), and hands over W + 1 times what such a
    share takes, in which each part of a group counts as one. With error feedback, which then is over both
    ways, and Nesterov's momentum before it, that is dist-EF-SGDM (Zheng et al., NeurIPS 2019).

    Args:
        scaling: Whether signs are scaled by mean|x|, else by 1.
        exchange: One way, by gathering all ranks' signs, or two ways, by servers that code the mean again.
    """

    def __init__(self, *, scaling: bool = True, exchange: Literal["gather", "ps"] = "gather") -> None:
        super().__init__()
        if exchange not in ("gather", "ps"):
            raise ValueError(f"exchange={exchange!r}: expected gather or ps")
        self._scaling, self._is_served = scaling, exchange == "ps"

    def encode(self, x_N: Tensor, sizes: Sequence[int], wire: Wire) -> Parts:
        scale_G = per_group(x_N.float(), sizes, self._scale)
        return {"values": words.pack_signs_by_group(x_N, sizes), "scales": scale_G}

    def decode(self, parts: Mapping[str, Tensor], sizes: Sequence[int]) -> Tensor:
        signs_N = words.unpack_signs_by_group(parts["values"], sizes)
        return Buckets(sizes).scale_(signs_N, parts["scales"])

    def bytes_of(self, sizes: Sequence[int]) -> dict[str, int]:
        return {"values": 4 * sum(map(words.num_words, sizes)), "scales": 4 * len(sizes)}

    def forward(self, grad_N: Tensor, residual_N: Tensor | None, wire: Wire) -> Reduced:
        if not self._is_served:
            return super().forward(grad_N, residual_N, wire)
        return reduce_served(self, grad_N, residual_N, self.sizes, wire)

    def payload(self, counts: list[int], rank: int) -> dict[str, int] | None:
        if not self._is_served:
            return super().payload(counts, rank)
        return payload_served(self, self.sizes, len(counts))

    def _scale(self, x: Tensor) -> Tensor:
        if self._scaling:
            return x.abs().mean()
        return torch.where(all_finite(x), 1.0, torch.nan)  # signs alone would hide it


REDUCER = OneBit
