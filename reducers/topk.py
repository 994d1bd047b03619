"""Top-k: the k = max(1, ⌊d·n⌋) largest elements of each layer, by magnitude (Aji & Heafield, 2017)."""
# N = elements of the flat vector, K = elements selected

from typing import Unpack

import torch
from torch import Tensor

from sage.reduction import Layout, Sparsifier, Travel, Wire, check_fraction, ops


class TopK(Sparsifier):
    """Send the k largest elements of every group by magnitude; of equal ones that of the lower index.

    Aji & Heafield send the elements above a threshold that a sample estimates. Exactly k elements of each
    layer, with k = max(1, ⌊d·n⌋), are the utility study's TopK (Agarwal et al., MLSys 2022).

    Args:
        density: Share of a group's elements to send, in (0, 1].
    """

    grouping = "layer"
    density_G: Tensor

    def __init__(self, *, density: float = 0.01, **travel: Unpack[Travel]) -> None:
        super().__init__(**travel)
        self.density = check_fraction("density", density)

    def bind(self, layout: Layout) -> None:
        super().bind(layout)
        self.register_buffer(
            "density_G", torch.full((len(layout.groups),), self.density, dtype=torch.float64)
        )

    def take(self, grad_N: Tensor, residual_N: Tensor | None, wire: Wire) -> tuple[Tensor, Tensor]:
        groups = self.layout.groups
        counts = [num_kept(d, b - a) for (a, b), d in zip(groups, self.density_G.tolist(), strict=True)]
        return ops.take_top(grad_N, residual_N, [0, *(stop for _, stop in groups)], counts, dtype=self.dtype)

    def report(self) -> dict[str, float]:
        sizes_G = torch.tensor([stop - start for start, stop in self.layout.groups], dtype=torch.float64)
        if not sizes_G.any():  # every tensor of the model is small and goes dense
            return {"density_asked": self.density}
        return {"density_asked": float((self.density_G.cpu() * sizes_G).sum() / sizes_G.sum())}


def num_kept(density: float, numel: int) -> int:
    """k = max(1, ⌊d·n⌋), and 0 of nothing."""
    # d·n is taken to 12 digits first: 0.29·100 is 28.999999999999996 in binary, and 29 is meant.
    return min(numel, max(1, int(round(density * numel, 12))))


REDUCER = TopK
