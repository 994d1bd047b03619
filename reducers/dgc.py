"""DGC: sends magnitudes above a threshold estimated from a random sample (Lin et al., ICLR 2018)."""
# N = elements of the flat vector, S = sampled elements

import math
import zlib
from collections.abc import Sequence
from typing import Annotated, Literal, Unpack

import torch
from torch import Tensor

from sage.reduction import Layout, SparsifierOptions, Wire, check_fraction, ops, seed_at
from sage.reduction import density_schedule as schedules
from sage.validate import LATER

from ._by_threshold import ByThreshold
from ._signal import Signal, reaches

SAMPLED = 0.01
"""Share of a layer's elements that are sampled."""


class DGC(ByThreshold):
    """Send |a| ≥ λ, where λ is the ⌈0.01·n·d⌉-th largest of ⌈0.01·n⌉ magnitudes drawn at random from a layer.

    How they are drawn is ours: the layer is cut into ⌈0.01·n⌉ runs of about 100 consecutive elements, and one
    element of each is drawn.

    `rule="paper"` is the paper's sampling, with its exact selection among the elements above λ if these are
    too many (section 5). The paper does not state how many are too many: the limit of 4k/3, beyond which only
    the k largest are sent, is that of SIDCo's code. If fewer than k elements exceed λ, these are sent.
    `rule="authors"` is the authors' code (synxlin/deep-gradient-compression, commit b929ca7,
    dgc/compression.py). It samples every s-th element from a random start, with s ≤ n/max(⌈0.01·n⌉, ⌈2/d⌉),
    and k is ⌈n·d⌉. While fewer than 0.8·k elements exceed λ, it is multiplied by 0.8, at most ten times. If
    more than 1.3·k exceed it, the k largest are sent; if more than k, the k first in the order of their
    indices. A layer of at most ⌈2/d⌉ elements sends its k largest.
    `rule="grace"` is the code of GRACE: while more than 1.3·k or fewer than 0.7·k elements exceed λ, it is
    multiplied by 1.3 or 0.7, at most ten times; all elements above it are sent.

    The other parts of the paper are options of the run. Momentum correction (equation 7) and momentum factor
    masking are `--memory momentum`, together with `--momentum 0`; otherwise momentum would be applied twice.
    `--memory-nesterov` is the form of the authors' code for Nesterov momentum.
    `--clip-local` clips each rank's gradient; `--clip-local-by-world` clips it to 1/√W of that, as in the
    paper (section 3.2). `--density-schedule warmup` is the density warm-up of section 3.3: 25 %, 6.25 %,
    1.5625 %, 0.4 %, 0.1 % in the first epochs. With `density_epochs` E it is that of the authors' code:
    d^((t+1)/(E+1)) in epoch t < E, which for d = 0.1 % and E = 4 is 25.1 %, 6.3 %, 1.6 %, 0.4 %.

    Achieved over target count, k̂/k, is 0.85 to 1.02 on vectors of 10^6 elements (normal, Laplace,
    Student-t(4), or 70 % zeros) at d = 0.1, 0.01 and 0.001, with a standard deviation of up to 0.27. It is
    not within 20 % of 1 where λ is the largest of the sample: 0.63 ± 0.42 at n·d = 100. `grace` is at 0.81 to
    1.02 on the former; at n·d = 100 it is at 1.05 ± 0.55 (n = 10^4) and 1.87 ± 3.89 (n = 10^5). (Measured:
    docs/explanation/selection.md.)

    Args:
        rule: What corrects λ: the paper's exact selection if too many elements exceed it, that of the
            authors' code, or GRACE's repeated scaling.
        density_schedule: How the density changes: `constant`, or `warmup`, which divides it by four each
            epoch until it reaches `density`.
        density_from: First density of `warmup`, at least `density`; by default 0.25.
        density_epochs: Number of epochs of `warmup`, 1 or more, in which the density falls by equal factors;
            by default it is divided by four.
        sample_seed: Seed of the samples; each rank and step draws its own.

    Raises:
        ValueError: if an option is out of range.
    """

    decides_by = "group"
    grouping = "layer"
    step: Tensor
    _place: tuple[int, int]

    def __init__(
        self,
        *,
        density: float = 0.01,
        rule: Literal["paper", "authors", "grace"] = "paper",
        density_schedule: Literal["constant", "warmup"] = "constant",
        density_from: float | None = None,
        density_epochs: Annotated[int | None, LATER] = None,
        sample_seed: int = 0,
        **options: Unpack[SparsifierOptions],
    ) -> None:
        super().__init__(density=density, **options)
        if rule not in ("paper", "authors", "grace"):
            raise ValueError(f"rule={rule!r}: expected paper, authors or grace")
        if density_schedule not in ("constant", "warmup"):
            raise ValueError(f"density_schedule={density_schedule!r}: expected constant or warmup")
        if density_from is not None and check_fraction("density_from", density_from) < self.density:
            raise ValueError(f"density_from={density_from!r}: expected at least density={self.density!r}")
        if density_epochs is not None and (
            density_epochs < 1 or density_schedule != "warmup" or density_from is not None
        ):
            raise ValueError(
                f"density_epochs={density_epochs!r} with density_schedule={density_schedule!r} and "
                f"density_from={density_from!r}: expected 1 epoch or more, density_schedule='warmup', and no "
                "density_from"
            )
        self.target = schedules.SCHEDULES[density_schedule](self.density, start=density_from)
        if density_epochs is not None:
            self.target = schedules.Geometric(self.density, epochs=density_epochs)
        self._rule = rule
        self._seed = sample_seed
        self.limit = {"paper": 4 / 3, "authors": 1.3, "grace": math.inf}[rule]
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def bind(self, layout: Layout) -> None:
        super().bind(layout)
        # A group draws by its own name, so that it draws the same in a vector of other groups (a bucket).
        first = {
            group: span.name
            for group, span in zip(layout.group_of_span()[::-1], layout.spans[::-1], strict=True)
        }
        self._names = [zlib.crc32(first.get(group, "").encode()) for group in range(len(layout.groups))]

    def begin_epoch(self, epoch: int, lr: float, wire: Wire) -> None:
        self.target.begin_epoch(epoch, lr, wire)

    def now(self) -> float:
        return self.target.now()

    def take(self, grad_N: Tensor, residual_N: Tensor | None, wire: Wire) -> tuple[Tensor, Tensor]:
        self._place = (int(self.step), wire.stream)
        self.step += 1
        return super().take(grad_N, residual_N, wire)

    def num_to_send(self, n: int) -> int:
        # Rounded to 9 digits first: 1000·0.029 is slightly above 29 in binary floating point.
        return math.ceil(round(n * self.now(), 9)) if self._rule == "authors" else super().num_to_send(n)

    def estimate(self, signal: Signal, counts: Sequence[int]) -> list[float | None]:
        if self._rule == "authors":
            return self._by_authors(signal, counts)
        sizes = [math.ceil(SAMPLED * n) for n in signal.sizes]
        # Rounded to 9 digits first: 0.01·10^6·0.001 is slightly above 10 in binary floating point.
        ranks = [math.ceil(round(SAMPLED * n * self.now(), 9)) for n in signal.sizes]
        draws = [
            ops.random_bits(size, seed_at(self._seed, *self._place, name), device=signal.device)
            for size, name in zip(sizes, self._names, strict=True)
        ]
        draws_S = torch.cat([ops.random_bits(0, 0, device=signal.device), *draws])
        thresholds = signal.sampled(sizes, ranks, draws_S)
        if self._rule == "paper":
            return list(thresholds)
        # Too few are fewer than ⌈0.7·k⌉, too many are ⌊1.3·k⌋ + 1 or more.
        moments = signal.moments([(math.ceil(0.7 * k), math.floor(1.3 * k) + 1) for k in counts])
        return [_refined(t, m.ranked, signal.dtype) for t, m in zip(thresholds, moments, strict=True)]

    def _by_authors(self, signal: Signal, counts: Sequence[int]) -> list[float | None]:
        thresholds: list[float | None] = []
        for group, (n, k, name) in enumerate(zip(signal.sizes, counts, self._names, strict=True)):
            stride = sample_stride(n, self.now())
            if stride == 1 or k == n:
                thresholds.append(None)  # the k largest
                continue
            start = seed_at(self._seed, *self._place, name) % stride
            samples_S, rank = signal.of(group)[start::stride].abs(), math.ceil(n // stride * self.now())
            thresholds.append(float(samples_S.topk(rank).values[-1]))
        enough = [math.ceil(round(0.8 * k, 9)) for k in counts]
        moments = signal.moments([(num,) for num in enough])
        for group, found in enumerate(moments):
            for _ in range(10):
                threshold = thresholds[group]
                if threshold is None or reaches(found.ranked[0], threshold, signal.dtype):
                    break
                thresholds[group] = 0.8 * threshold
        return thresholds

    def _corrected(
        self, signal: Signal, group: int, k: int, threshold: float | None, own_K: Tensor, at_K: Tensor
    ) -> tuple[Tensor, Tensor, float]:
        own_K, at_K, used = super()._corrected(signal, group, k, threshold, own_K, at_K)
        if self._rule == "authors" and at_K.numel() > k:
            signal.put_back(own_K[k:], at_K[k:])
            own_K, at_K = own_K[:k], at_K[:k]
        return own_K, at_K, used


def sample_stride(n: int, density: float) -> int:
    """Distance between the samples of the authors' code; 1: all of n elements.

    >>> [sample_stride(n, 0.01) for n in (200, 201, 10_000, 100_000)]
    [1, 1, 49, 97]
    """
    few = math.ceil(2 / density)
    if n <= few:
        return 1
    least = max(math.ceil(SAMPLED * n), few)
    stride = math.ceil(n / least / 32) * 32 + 1
    while n // stride < least:
        stride -= 8
    return stride


def _refined(threshold: float, ranked: list[float], dtype: torch.dtype) -> float:
    for _ in range(10):
        enough, excessive = (reaches(magnitude, threshold, dtype) for magnitude in ranked)
        if enough and not excessive:
            break
        threshold *= 1.3 if enough else 0.7
    return threshold


REDUCER = DGC
