"""Top-k: sends the k = max(1, ⌊d·n⌋) largest magnitudes of each layer (Aji & Heafield, EMNLP 2017)."""
# N = elements of the flat vector, K = elements selected

from typing import Unpack

import torch
from torch import Tensor

from sage.reduction import Layout, Sparsifier, SparsifierOptions, Wire, check_fraction, ops


class TopK(Sparsifier):
    """Send the k largest elements of every group by magnitude; of equal ones, those of lower index.

    Aji & Heafield send the elements above a threshold that is estimated from a sample. Sending exactly k
    elements of each layer, k = max(1, ⌊d·n⌋), is the utility study's TopK (Agarwal et al., MLSys 2022).

    Args:
        density: Share of each group's elements to send, in (0, 1].

    Raises:
        ValueError: if an option is out of range.
    """

    decides_by = "group"
    grouping = "layer"
    density_G: Tensor

    def __init__(self, *, density: float = 0.01, **options: Unpack[SparsifierOptions]) -> None:
        super().__init__(**options)
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
        if not sizes_G.any():  # every tensor of the model is small and is sent dense
            return {"density_asked": self.density}
        return {"density_asked": float((self.density_G.cpu() * sizes_G).sum() / sizes_G.sum())}


def num_kept(density: float, numel: int) -> int:
    """k = max(1, ⌊d·n⌋), and 0 if n = 0."""
    # Rounded to 12 digits first: 0.29·100 is 28.999999999999996 in binary floating point.
    return min(numel, max(1, int(round(density * numel, 12))))


REDUCER = TopK
