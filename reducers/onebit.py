"""onebit: sends signs and the mean magnitude of each group, one-way or two-way (BytePS)."""
# N = elements of the vector, G = groups

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from sage.reduction import (
    Layout,
    Parts,
    Reduced,
    SignQuantiser,
    Wire,
    counts_of,
    ops,
    payload_two_way,
    reduce_two_way,
)


class OneBit(SignQuantiser):
    """Each element becomes scale·sign(x), where scale = mean|x| of its group; zero counts as positive.

    The format is that of BytePS's onebit, whose partition is a group here: 32 signs in a 4-byte word, the
    first sign in the highest bit, 1 for a negative element (`values`; each group begins a new word), and 4
    bytes for the scale (`scales`). With `exchange=gather` these are the payload bytes per rank.

    With `ps` and `dist-ef` the mean is encoded again by a server. Every rank is the server of 1/W of the
    vector, where W is the number of ranks (`sage.reduction.two_way`). Payload bytes per rank: W + 1 times the
    code of such a share, in which each part of a group has its own scale. The two differ in how the rank's
    own part of its share is treated, and where the server's error goes:

    - `ps` is ours: the own part is not sent and therefore not encoded, and the server's error is fed back
      through that rank's residual. It is not dist-EF-SGDM: from (1, 3, 0, 0) and (−4, 0.5, 0, 0) it makes
      ±1.625.
    - `dist-ef`: the own part is encoded too, and the server keeps its error separately, as in BytePS and in
      dist-EF-SGD (Zheng et al., NeurIPS 2019); the same vectors give ±1.125. With Nesterov momentum before
      the reduction it is dist-EF-SGDM at a constant learning rate: the paper also scales both errors by
      η_{t−1}/η_t.

    Args:
        scaling: Whether signs are multiplied by mean|x|; if not, by 1.
        exchange: How the mean is formed: `gather` all ranks' signs, or encode the mean again on servers, by
            our rule (`ps`) or that of Zheng et al. (`dist-ef`).

    Raises:
        ValueError: if `exchange` is none of these.
    """

    words = "group"
    server_N: Tensor

    def __init__(
        self, *, scaling: bool = True, exchange: Literal["gather", "ps", "dist-ef"] = "gather"
    ) -> None:
        super().__init__()
        if exchange not in ("gather", "ps", "dist-ef"):
            raise ValueError(f"exchange={exchange!r}: expected gather, ps or dist-ef")
        self._scaling, self._is_two_way = scaling, exchange != "gather"
        self._keeps_server_error = exchange == "dist-ef"
        # The server's error is in no residual: it reaches a later mean without passing through a rank.
        self.conserves = not self._keeps_server_error

    def bind(self, layout: Layout) -> None:
        super().bind(layout)
        if self._keeps_server_error:
            self.register_buffer("server_N", torch.zeros(layout.numel))

    def compress(self, grad_N: Tensor, residual_N: Tensor | None, sizes: Sequence[int], wire: Wire) -> Parts:
        scale_G = self._scales(grad_N, residual_N, sizes)
        return self.encode_signs(grad_N, residual_N, sizes, scale_G)

    def compress_signal(self, signal_N: Tensor, sizes: Sequence[int], wire: Wire) -> Parts:
        return self.encode_signs(signal_N, signal_N, sizes, self._scales(signal_N, None, sizes))

    def _scales(self, grad_N: Tensor, residual_N: Tensor | None, sizes: Sequence[int]) -> Tensor:
        sum_G = ops.statistics(grad_N, residual_N, sizes, ops.Kind.ABSOLUTE).sum_G
        scale_G = (sum_G / counts_of(sizes, sum_G)).float()
        if self._scaling:
            return scale_G
        return torch.where(scale_G.isfinite(), 1.0, torch.nan)  # signs do not show NaN or infinity

    def forward(self, grad_N: Tensor, residual_N: Tensor | None, wire: Wire) -> Reduced:
        if not self._is_two_way:
            return super().forward(grad_N, residual_N, wire)
        server_N = self.server_N if self._keeps_server_error else None
        return reduce_two_way(self, grad_N, residual_N, self.sizes, wire, server_N=server_N)

    def payload(self, counts: list[int], rank: int) -> dict[str, int] | None:
        if not self._is_two_way:
            return super().payload(counts, rank)
        return payload_two_way(self, self.sizes, len(counts))


REDUCER = OneBit
