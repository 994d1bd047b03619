"""DGC: sends magnitudes above a threshold estimated from a random sample (Lin et al., ICLR 2018)."""
# N = elements of a group, S = sampled elements

import math
from typing import Literal, Unpack

import torch
from torch import Tensor

from sage.reduction import SparsifierOptions, Wire, check_fraction, generator, ops
from sage.reduction import density_schedule as schedules

from ._by_threshold import ByThreshold

SAMPLED = 0.01
"""Share of a layer's elements that are sampled."""


class DGC(ByThreshold):
    """Send |a| ≥ λ, where λ is the ⌈0.01·n·d⌉-th largest of ⌈0.01·n⌉ magnitudes drawn at random from a layer.

    `rule="paper"` is the paper's sampling, with its exact selection among the elements above λ if these are
    too many (section 5). The paper does not state how many are too many: the limit of 4k/3, beyond which only
    the k largest are sent, is that of SIDCo's code. If fewer than k elements exceed λ, these are sent.
    `rule="grace"` is the code of GRACE: while more than 1.3·k or fewer than 0.7·k elements exceed λ, it is
    multiplied by 1.3 or 0.7, at most ten times; all elements above it are sent.

    The other parts of the paper are options of the run. Momentum correction (equation 7) and momentum factor
    masking are `--memory momentum`, together with `--momentum 0`; otherwise momentum would be applied twice.
    `--clip-local` clips each rank's gradient; `--clip-local-by-world` clips it to 1/√W of that, as in the
    paper (section 3.2). `--density-schedule warmup` is the density warm-up of section 3.3: 25 %, 6.25 %,
    1.5625 %, 0.4 %, 0.1 % in the first epochs.

    Achieved over target count, k̂/k, is 0.89 to 1.07 on vectors of 10^6 elements (normal, Laplace,
    Student-t(4), or 70 % zeros) at d = 0.1, 0.01 and 0.001, with a standard deviation of up to 0.25. It is
    not within 20 % of 1 where λ is the largest of the sample: 0.63 to 0.67 ± 0.38 at n·d = 100. `grace` is at
    0.81 to 1.07 on the former; at n·d = 100 it is at 0.99 (n = 10^4) and 1.50 ± 2.94 (n = 10^5). (Measured:
    docs/explanation/selection.md.)

    Args:
        rule: What corrects λ: the paper's exact selection if too many elements exceed it, or GRACE's repeated
            scaling.
        density_schedule: How the density changes: `constant`, or `warmup`, which divides it by four each
            epoch until it reaches `density`.
        density_from: First density of `warmup`, at least `density`; by default 0.25.
        sample_seed: Seed of the samples; each rank and step draws its own.

    Raises:
        ValueError: if an option is out of range.
    """

    grouping = "layer"
    step: Tensor
    _rng: torch.Generator

    def __init__(
        self,
        *,
        density: float = 0.01,
        rule: Literal["paper", "grace"] = "paper",
        density_schedule: Literal["constant", "warmup"] = "constant",
        density_from: float | None = None,
        sample_seed: int = 0,
        **options: Unpack[SparsifierOptions],
    ) -> None:
        super().__init__(density=density, **options)
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
        self._rng = generator(self._seed, int(self.step), wire.rank)
        self.step += 1
        return super().select(signal_N, wire)

    def threshold(self, x_N: Tensor, k: int, group: int) -> float | None:
        n = x_N.numel()
        at_S = torch.randint(n, (math.ceil(SAMPLED * n),), generator=self._rng).to(x_N.device)
        # Rounded to 9 digits first: 0.01·10^6·0.001 is slightly above 10 in binary floating point.
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
