"""CLT-k: ranks take turns to select the indices that all ranks send (Chen et al., NeurIPS 2020, ScaleCom)."""
# N = elements of the flat vector, K = elements selected

from typing import Literal

import torch
from torch import Tensor

from sage.reduction import Reduced, Sparsifier, Wire, check_fraction, mean_at, ops, phase

from .topk import num_kept


class Cltk(Sparsifier):
    """Rank t mod W broadcasts its top-k indices of each group; all ranks send their values at these indices.

    This is the paper's cyclic local top-k. All ranks send the same k elements by an all-reduce, so the cost
    of the mean does not grow with the number of ranks W. It differs from the paper in two points: the paper's
    low-pass filter of the residual is not offered, and the local selection is an exact top-k. Payload bytes
    per rank: 4 (or 2) per value; the selecting rank also sends 4 per index.

    Args:
        density: Share of each group's elements to send, in (0, 1].

    Raises:
        ValueError: if `density` or `values` is out of range.
    """

    decides_by = "group"
    grouping = "layer"
    step: Tensor

    def __init__(self, *, density: float = 0.01, values: Literal["fp32", "fp16"] = "fp32") -> None:
        super().__init__(values=values)
        self.density = check_fraction("density", density)
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def select(self, signal_N: Tensor, wire: Wire) -> Tensor:
        leader = int(self.step) % wire.world_size
        self.step += 1
        groups = self.layout.groups
        counts = [num_kept(self.density, stop - start) for start, stop in groups]
        at_K = torch.empty(sum(counts), dtype=torch.int32, device=signal_N.device)
        if wire.rank == leader:
            for (start, stop), k, own_K in zip(groups, counts, at_K.split(counts), strict=True):
                own_K.copy_(ops.select_top(signal_N[start:stop], k) + start)
        return wire.broadcast(at_K, root=leader, kind="indices").long()

    def forward(self, grad_N: Tensor, residual_N: Tensor | None, wire: Wire) -> Reduced:
        with phase("select"):
            signal_N = ops.accumulate(grad_N, residual_N)
            at_K = self.select(signal_N, wire)
        keep = residual_N is not None
        return mean_at(signal_N, at_K, wire, dtype=self.dtype, keep=keep, out_N=grad_N)

    def payload(self, counts: list[int], rank: int) -> dict[str, int] | None:
        return None  # which rank selects does not follow from the counts

    def report(self) -> dict[str, float]:
        return {"density_asked": self.density}


REDUCER = Cltk
