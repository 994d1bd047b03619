"""onebit: signs in words of 32, times the mean of the magnitudes, coded once or twice (BytePS)."""
# N = elements of the vector, G = groups

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from sage.reduction import (
    Buckets,
    Layout,
    Parts,
    Quantiser,
    Reduced,
    Wire,
    all_finite,
    bitpacking,
    payload_served,
    per_group,
    reduce_served,
)


class OneBit(Quantiser):
    """Each element becomes scale·sign(x), with scale = mean|x| of its group; zero counts as positive.

    The code is that of BytePS's onebit, whose partition is a group here: 32 signs in a word of 4 bytes, the
    first one the highest bit, 1 where an element is below 0 (`values`; each group begins a word), and 4 for
    the scale (`scales`). With `exchange=gather` these are the bytes each rank hands over.

    With `ps` and `dist-ef` a server codes the mean again. Every rank serves a Wth of the vector, W being the
    number of ranks (`sage.reduction.two_way`), and hands over W + 1 times the code of such a share, in which
    each part of a group has a scale of its own. They differ in the rank's own part of its share, and in where
    the server's error goes:

    - `ps` is ours: the own part crosses no link and is not coded, and the server's error is fed back through
      that rank's residual. It is not dist-EF-SGDM: of (1, 3, 0, 0) and (−4, 0.5, 0, 0) it makes ±1.625.
    - `dist-ef`: the own part is coded too, and the server keeps its error apart, as in BytePS and in
      dist-EF-SGD (Zheng et al., NeurIPS 2019), here ±1.125. With Nesterov momentum before the reduction it is
      dist-EF-SGDM at a constant learning rate: the paper also scales both errors by η_{t−1}/η_t.

    Args:
        scaling: Whether signs are scaled by mean|x|, else by 1.
        exchange: `gather` all ranks' signs, or let servers code the mean again, by our rule (`ps`) or that of
            Zheng et al. (`dist-ef`).
    """

    server_N: Tensor

    def __init__(
        self, *, scaling: bool = True, exchange: Literal["gather", "ps", "dist-ef"] = "gather"
    ) -> None:
        super().__init__()
        if exchange not in ("gather", "ps", "dist-ef"):
            raise ValueError(f"exchange={exchange!r}: expected gather, ps or dist-ef")
        self._scaling, self._is_served = scaling, exchange != "gather"
        self._keeps_server_error = exchange == "dist-ef"
        # Of the server's error the residual knows nothing: it reaches a later mean, but not by way of a rank.
        self.conserves = not self._keeps_server_error

    def bind(self, layout: Layout) -> None:
        super().bind(layout)
        if self._keeps_server_error:
            self.register_buffer("server_N", torch.zeros(layout.numel))

    def encode(self, x_N: Tensor, sizes: Sequence[int], wire: Wire) -> Parts:
        scale_G = per_group(x_N.float(), sizes, self._scale)
        return {"values": bitpacking.pack_signs_by_group(x_N, sizes), "scales": scale_G}

    def decode(self, parts: Mapping[str, Tensor], sizes: Sequence[int]) -> Tensor:
        signs_N = bitpacking.unpack_signs_by_group(parts["values"], sizes)
        return Buckets(sizes).scale_(signs_N, parts["scales"])

    def bytes_of(self, sizes: Sequence[int]) -> dict[str, int]:
        return {"values": 4 * sum(map(bitpacking.num_words, sizes)), "scales": 4 * len(sizes)}

    def forward(self, grad_N: Tensor, residual_N: Tensor | None, wire: Wire) -> Reduced:
        if not self._is_served:
            return super().forward(grad_N, residual_N, wire)
        server_N = self.server_N if self._keeps_server_error else None
        return reduce_served(self, grad_N, residual_N, self.sizes, wire, server_N=server_N)

    def payload(self, counts: list[int], rank: int) -> dict[str, int] | None:
        if not self._is_served:
            return super().payload(counts, rank)
        return payload_served(self, self.sizes, len(counts))

    def _scale(self, x: Tensor) -> Tensor:
        if self._scaling:
            return x.abs().mean()
        return torch.where(all_finite(x), 1.0, torch.nan)  # signs alone would hide it


REDUCER = OneBit
