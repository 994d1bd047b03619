"""MSTopK: sends exactly k elements, selected by bisecting two thresholds (Shi et al., MLSys 2021)."""
# N = elements of the flat vector, then of one group; K = elements selected, C = candidates

import math
from typing import Unpack

import torch
from torch import Tensor

from sage.reduction import Sparsifier, SparsifierOptions, Wire, check_fraction, generator, ops

from ._by_threshold import NARROW, extremes, largest
from .topk import num_kept


class MSTopK(Sparsifier):
    """Send k = max(1, ⌊d·n⌋) elements of each group: those above t1, and a run of those between t2 and t1.

    Let t = mean + ρ·(max − mean) of the magnitudes. ρ in (0, 1) is bisected `bisections` times (Algorithm 1).
    t1 is the smallest t tried that at most k elements reach; t2 is the largest t tried that more than k
    elements reach (0 if there is none). All elements that reach t1 are sent. The elements missing to k are a
    run, starting at a random position, of the elements in [t2, t1) in index order. Exactly k elements are
    always sent: k̂/k = 1. More rounds bring the selection closer to the k largest. If a group is constant or
    not finite, its k largest elements are sent. Payload bytes per rank: 8 (or 6) per element sent.

    This is the paper's algorithm as implemented in the utility study's code (Agarwal et al., 2022), which
    makes 100 rounds, and 20 in its hook; the default of 30 is ours. The hook in that code writes the values
    to the first k positions of the vector, a fault that is not copied.

    Args:
        density: Share of each group's elements to send, in (0, 1].
        bisections: Number of bisection rounds, 1 or more; each one reads the vector once.
        sample_seed: Seed of the runs' start positions; each rank and step draws its own.

    Raises:
        ValueError: if an option is out of range.
    """

    step: Tensor

    def __init__(
        self,
        *,
        density: float = 0.01,
        bisections: int = 30,
        sample_seed: int = 0,
        **options: Unpack[SparsifierOptions],
    ) -> None:
        super().__init__(**options)
        self.density = check_fraction("density", density)
        if bisections < 1:
            raise ValueError(f"bisections={bisections!r}: expected 1 or more")
        self._bisections, self._seed = bisections, sample_seed
        self._threshold = 0.0
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def select(self, signal_N: Tensor, wire: Wire) -> Tensor:
        rng = generator(self._seed, int(self.step), wire.rank)
        self.step += 1
        self._threshold = 0.0
        chosen = [signal_N.new_empty(0, dtype=torch.int64)]
        for start, stop in self.layout.groups:
            k = num_kept(self.density, stop - start)
            at_K, threshold = self._choose(signal_N[start:stop], k, rng)
            self._threshold += threshold * (stop - start) / self.layout.numel if stop > start else 0.0
            chosen.append(at_K + start)
        return torch.cat(chosen)

    def _choose(self, x_N: Tensor, k: int, rng: torch.Generator) -> tuple[Tensor, float]:
        if k == x_N.numel():
            return torch.arange(k, device=x_N.device), 0.0
        mean, most = extremes(x_N)
        if not most > (1 + NARROW) * mean:  # constant, or not a number
            return largest(x_N, k)
        t1, t2 = self._bracket(x_N, k, mean, most)
        at_C = ops.select_above(x_N, t2)
        certain_C = x_N[at_C].abs() >= t1
        at_K, run_C = at_C[certain_C], at_C[~certain_C]
        missing = k - at_K.numel()
        start = int(torch.randint(run_C.numel() - missing + 1, (), generator=rng))
        return torch.cat((at_K, run_C[start : start + missing])).sort().values, t2

    def _bracket(self, x_N: Tensor, k: int, mean: float, most: float) -> tuple[float, float]:
        low, high, t1, t2 = 0.0, 1.0, math.inf, 0.0
        for _ in range(self._bisections):
            ratio = (low + high) / 2
            threshold = mean + ratio * (most - mean)
            if ops.count_above(x_N, threshold) <= k:
                high, t1 = ratio, threshold
            else:
                low, t2 = ratio, threshold
        return t1, t2

    def report(self) -> dict[str, float]:
        return {"threshold": self._threshold, "density_asked": self.density}


REDUCER = MSTopK
