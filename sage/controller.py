"""What threshold to select by, so that the density stays near its target: SAGE's controller.

A controller sees this rank's signal and nothing else, so it can be replayed on recorded gradients without a
network.
"""
# N = elements of the vector, S = sampled elements

import math

import torch
from torch import Tensor, nn

from sage import ops

ERROR_MARGIN = 0.05
"""e in Slovin's formula."""


class SageController(nn.Module):
    """SAGE's published rule (kljp/sage): follow the scale of |a|, lean gently towards the target density.

    λ_0 is given, by default 1/(2·sqrt(d*·n)); s_t is the mean of |a| over a random sample. From then on, with

        α = s_t / s_{t−1}                            (1 where either is 0, or λ would stay 0 for ever)
        d̂ = share of elements with |a| ≥ α·λ
        β = 2 / (1 + exp(d* − d̂))
        γ = 0.95 where d̂/d* < 0.1, 1.05 where d̂/d* > 10, else 1

    λ ← λ·α·β·γ. Known weakness, from its authors' own logs: β is almost 1 at small d*, so inside a band of
    two decades around the target there is hardly any feedback.

    Args:
        density: The target d*.
        threshold: λ_0.
        seed: Of the sample; the elements drawn at a step depend on nothing but it and the step.
    """

    threshold: Tensor
    scale: Tensor
    step: Tensor

    def __init__(self, *, density: float, threshold: float | None = None, seed: int = 0) -> None:
        super().__init__()
        self._density = density
        self._first = threshold
        self._seed = seed
        self.register_buffer("threshold", torch.zeros((), dtype=torch.float64))
        self.register_buffer("scale", torch.zeros((), dtype=torch.float64))
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def decide(self, signal_N: Tensor) -> float:
        """This step's threshold λ."""
        n = signal_N.numel()
        if n == 0:
            return 0.0
        scale = self._sample_mean(signal_N)
        if int(self.step) == 0:
            threshold = self._first if self._first is not None else 1 / (2 * math.sqrt(self._density * n))
        else:
            before = float(self.scale)
            alpha = scale / before if scale > 0 and before > 0 else 1.0
            threshold = self._steer(signal_N, float(self.threshold) * alpha)
        self.threshold.fill_(threshold)
        self.scale.fill_(scale)
        self.step += 1
        return threshold

    def _steer(self, signal_N: Tensor, threshold: float) -> float:
        had = ops.count_above(signal_N, threshold) / signal_N.numel()
        beta = 2 / (1 + math.exp(self._density - had))
        ratio = had / self._density
        gamma = 0.95 if ratio < 0.1 else 1.05 if ratio > 10 else 1.0
        return threshold * beta * gamma

    def _sample_mean(self, signal_N: Tensor) -> float:
        """Mean of |a| over a sample, every element as likely as any other; what is not finite counts as 0."""
        n = signal_N.numel()
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + int(self.step))
        at_S = torch.randint(n, (sample_size(n),), generator=generator).to(signal_N.device)
        sample_S = signal_N[at_S].abs()
        return float(sample_S.nan_to_num(0.0, 0.0, 0.0).mean(dtype=torch.float64))


def sample_size(n: int) -> int:
    """Slovin's formula: N/(1 + N·e²) elements, rounded up, estimate a share of N to within e.

    >>> sample_size(10), sample_size(1_000_000)
    (10, 400)
    """
    return math.ceil(n / (1 + n * ERROR_MARGIN**2))
