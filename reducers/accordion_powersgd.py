"""Accordion over PowerSGD: a higher rank for a layer in critical regimes (Agarwal et al., 2021)."""
# G = groups (layers)

from bisect import bisect_right

import torch
from torch import Tensor

from sage.reduction import Layout, Reduced, Wire, check_rank

from .accordion import CriticalRegimes
from .powersgd import PowerSgd


class AccordionPowerSgd(CriticalRegimes, PowerSgd):
    """PowerSGD with `rank_high` in critical regimes and `rank` outside them, by the rule of `accordion`.

    The paper combines the two likewise; the default ranks are ours. Whether a parameter goes dense depends on
    `rank_high` alone, so that it does not change in a run. A layer that returns to `rank_high` continues with
    the further columns of Q as it left them, where the paper does not say. At each decision rank 0 hands over
    8 bytes a layer (`scales`); for the rest see `powersgd`.

    Args:
        rank: Rank outside critical regimes, 1 or more.
        rank_high: Rank inside them; by default four times `rank`.
        switch_every: Epochs between decisions, 1 or more.
        eta: The relative change of a layer's gradient norm above which it is critical, 0 or more.
        start_step: Steps at first that are exact, by all-reduce, 0 or more.
        min_compression_rate: A matrix goes dense unless rank_high·(n + m) times this is less than n·m.
        sample_seed: Of the first Q.
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
