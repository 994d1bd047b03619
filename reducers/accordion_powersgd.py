"""Accordion for PowerSGD: a higher rank for layers in critical regimes (Agarwal et al., MLSys 2021)."""
# G = groups (layers)

from bisect import bisect_right

import torch
from torch import Tensor

from sage.reduction import Layout, Reduced, Wire, check_rank

from .accordion import CriticalRegimes
from .powersgd import PowerSgd


class AccordionPowerSgd(CriticalRegimes, PowerSgd):
    """PowerSGD with `rank_high` in critical regimes and `rank` outside them, by the rule of `accordion`.

    The paper combines the two methods in the same way; the default ranks are ours. Whether a parameter is
    sent dense depends only on `rank_high`, so it does not change during a run. When a layer returns to
    `rank_high`, the additional columns of Q keep their last values; the paper does not specify this. At each
    decision rank 0 broadcasts 8 bytes per layer (`scales`). All other payload bytes are those of `powersgd`.

    Args:
        rank: Rank of the factors outside critical regimes, 1 or more.
        rank_high: Rank inside critical regimes; by default four times `rank`.
        switch_every: Epochs between decisions, 1 or more.
        eta: Relative change of a layer's gradient norm above which the layer is critical, 0 or more.
        start_step: Number of initial steps that use an exact all-reduce, 0 or more.
        min_compression_rate: A matrix is sent dense unless rank_high·(n + m) times this is less than n·m.
        sample_seed: Seed of the initial Q.

    Raises:
        ValueError: if an option is out of range, or `rank_high` is below `rank`.
    """

    level = "rank_G"

    rank_G: Tensor

    def __init__(
        self,
        *,
        rank: int = 1,
        rank_high: int | None = None,
        switch_every: int = 10,
        eta: float = 0.5,
        start_step: int = 0,
        min_compression_rate: float = 2.0,
        sample_seed: int = 0,
    ) -> None:
        low = check_rank("rank", rank)
        high = 4 * low if rank_high is None else rank_high
        if high < low:
            raise ValueError(f"rank_high={high!r}: expected at least rank={low!r}")
        super().__init__(
            rank=high,
            start_step=start_step,
            min_compression_rate=min_compression_rate,
            sample_seed=sample_seed,
        )
        self.set_rule(low=low, high=high, switch_every=switch_every, eta=eta)

    def bind(self, layout: Layout) -> None:
        self.register_buffer("rank_G", torch.zeros(len(layout.groups), dtype=torch.float64))
        super().bind(layout)
        starts = [start for start, _ in layout.groups]
        self._group_of = [bisect_right(starts, x.start) - 1 for x in self.split.matrices]

    def forward(self, grad_N: Tensor, residual_N: Tensor | None, wire: Wire) -> Reduced:
        reduced = super().forward(grad_N, residual_N, wire)
        self.sum_N += reduced.mean_N
        return reduced

    def ranks(self) -> list[int]:
        rank_G = self.rank_G.tolist()
        return [min(x.rank, int(rank_G[g])) for x, g in zip(self.split.matrices, self._group_of, strict=True)]

    def report(self) -> dict[str, float]:
        ranks = self.ranks()
        return {"mean_rank": sum(ranks) / max(1, len(ranks))}


REDUCER = AccordionPowerSgd
