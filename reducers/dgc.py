"""DGC: magnitudes above a threshold estimated from a sample (Lin et al., ICLR 2018)."""
# N = elements of a group, S = sampled elements

import math
from typing import Literal, Unpack

import torch
from torch import Tensor

from sage.reduction import Travel, Wire, check_fraction, generator, ops
from sage.reduction import density_schedule as schedules

from ._by_threshold import ByThreshold

SAMPLED = 0.01
"""Share of a layer's elements that are looked at."""


class DGC(ByThreshold):
    """Send |a| ≥ λ, λ the ⌈0.01·n·d⌉-th largest magnitude of ⌈0.01·n⌉ elements drawn at random from a layer.

    `paper` is the paper's sampling, and its exact selection among the survivors where these are too many
    (section 5). The paper does not state how many are too many: the limit of 4k/3, beyond which the k largest
    are sent, is that of SIDCo's code. Where fewer than k survive, these are sent. `grace` is the code of
    GRACE: λ is multiplied by 1.3 or 0.7, at most ten times, while more than 1.3·k or fewer than 0.7·k
    survive, and all survivors are sent.

    The other parts of the paper are options of the run. Momentum correction (equation 7) and momentum factor
    masking are `--memory momentum`, with `--momentum 0`, or there would be momentum twice. Each rank's
    gradient is clipped by `--clip-local`, and to 1/√W of that, as in the paper (section 3.2), by
    `--clip-local-by-world`. The density warms up (section 3.3) by `--density-schedule warmup`: 25 %, 6.25 %,
    1.5625 %, 0.4 %, 0.1 % in the first epochs.

    k̂/k is 0.89 to 1.07 in vectors of 10^6, normal, Laplace, Student-t(4) or with 70 % zeros, at d = 0.1,
    0.01, 0.001, with a standard deviation of up to 0.25. It is not within 20 % of 1 where the threshold is
    the largest of the sample: 0.63 to 0.67 ± 0.38 at n·d = 100. `grace` is at 0.81 to 1.07, and there at
    0.99 (n = 10^4) and 1.50 ± 2.94 (10^5). (Measured: docs/explanation/selection.md.)

    Args:
        rule: The paper's exact selection among too many survivors, or GRACE's refinement of the threshold.
        density_schedule: How the density changes: not at all, or by `warmup`, each epoch a quarter of the
            last, down to `density`.
        density_from: The first density of `warmup`, at least `density`; by default 0.25.
        sample_seed: Of the samples; each rank and step has its own.
    """

    grouping = "layer"
    step: Tensor
    _dice: torch.Generator

    def __init__(
        self,
        *,
        density: float = 0.01,
        rule: Literal["paper", "grace"] = "paper",
        density_schedule: Literal["constant", "warmup"] = "constant",
        density_from: float | None = None,
        sample_seed: int = 0,
        **travel: Unpack[Travel],
    ) -> None:
        super().__init__(density=density, **travel)
        if rule not in ("paper", "grace"):
            raise ValueError(f"rule={rule!r}: expected paper or grace")
        if density_schedule not in ("constant", "warmup"):
            raise ValueError(f"density_schedule={density_schedule!r}: expected constant or warmup")
        if density_from is not None and check_fraction("density_from", density_from) < self.density:
            raise ValueError(f"density_from={density_from!r}: expected at least density={self.density!r}")
        self.target = schedules.SCHEDULES[density_schedule](self.density, start=density_from)
        self._refines = rule == "grace"
        self._seed = sample_seed
        if not self._refines:
            self.limit = 4 / 3
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def begin_epoch(self, epoch: int, lr: float, wire: Wire) -> None:
        self.target.begin_epoch(epoch, lr, wire)

    def now(self) -> float:
        return self.target.now()

    def select(self, signal_N: Tensor, wire: Wire) -> Tensor:
        self._dice = generator(self._seed, int(self.step), wire.rank)
        self.step += 1
        return super().select(signal_N, wire)

    def threshold(self, x_N: Tensor, k: int, group: int) -> float | None:
        n = x_N.numel()
        at_S = torch.randint(n, (math.ceil(SAMPLED * n),), generator=self._dice).to(x_N.device)
        # The product is taken to 9 digits first: 0.01·10^6·0.001 is above 10 in binary, and 10 is meant.
        rank = math.ceil(round(SAMPLED * n * self.now(), 9))
        threshold = float(x_N[at_S].abs().topk(rank).values[-1])
        return self._refined(x_N, k, threshold) if self._refines else threshold

    def _refined(self, x_N: Tensor, k: int, threshold: float) -> float:
        for _ in range(10):
            count = ops.count_above(x_N, threshold)
            if 0.7 * k <= count <= 1.3 * k:
                break
            threshold *= 0.7 if count < k else 1.3
        return threshold


REDUCER = DGC
