"""MSTopK: k elements, selected by two thresholds that a bisection finds (Shi et al., MLSys 2021)."""
# N = elements of the flat vector, then of one group; K = elements selected, C = candidates

import math
from typing import Unpack

import torch
from torch import Tensor

from sage.reduction import Sparsifier, Travel, Wire, check_fraction, generator, ops

from ._by_threshold import NARROW, extremes, largest
from .topk import num_kept


class MSTopK(Sparsifier):
    """Send k = max(1, ⌊d·n⌋) elements of a group: those that lie above t1, and a run of those above t2.

    With t = mean + ρ·(max − mean) of the magnitudes, ρ in (0, 1) is bisected so many times (Algorithm 1). t1
    is the least t seen that no more than k elements reach, t2 the greatest that more than k do (0 where none
    does). All that reach t1 are sent, and the elements missing to k are a run, at a random place, of those in
    [t2, t1) in the order of their indices. Always k are sent: k̂/k = 1. The more rounds, the nearer these
    come to the k largest. The k largest of a constant group, or one that is not finite, are sent. Bytes: 8
    (or 6) an element sent.

    This is the paper's algorithm as the utility study's code has it (Agarwal et al., 2022), which makes 100
    rounds, and 20 in its hook; the default of 30 is ours. That code's hook writes the values to the first k
    places, a fault that is not copied.

    Args:
        density: Share of a group's elements to send, in (0, 1].
        bisections: Rounds, 1 or more; each reads the vector once.
        sample_seed: Of the places of the runs; each rank and step has its own.
    """

    step: Tensor

    def __init__(
        self,
        *,
        density: float = 0.01,
        bisections: int = 30,
        sample_seed: int = 0,
        **travel: Unpack[Travel],
    ) -> None:
        super().__init__(**travel)
        self.density = check_fraction("density", density)
        if bisections < 1:
            raise ValueError(f"bisections={bisections!r}: expected 1 or more")
        self._bisections, self._seed = bisections, sample_seed
        self._threshold = 0.0
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def select(self, signal_N: Tensor, wire: Wire) -> Tensor:
        dice = generator(self._seed, int(self.step), wire.rank)
        self.step += 1
        self._threshold = 0.0
        chosen = [signal_N.new_empty(0, dtype=torch.int64)]
        for start, stop in self.layout.groups:
            k = num_kept(self.density, stop - start)
            at_K, threshold = self._choose(signal_N[start:stop], k, dice)
            self._threshold += threshold * (stop - start) / self.layout.numel if stop > start else 0.0
            chosen.append(at_K + start)
        return torch.cat(chosen)

    def _choose(self, x_N: Tensor, k: int, dice: torch.Generator) -> tuple[Tensor, float]:
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
        start = int(torch.randint(run_C.numel() - missing + 1, (), generator=dice))
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
