"""SAGE's published rule (kljp/sage): follow the scale of |a|, lean gently towards the target density."""
# N = elements of the vector, K = elements selected

import math

import torch
from torch import Tensor

from sage import ops

from .base import Agree, Controller, agreed_threshold, alone, sample_size


class Published(Controller):
    """λ_0 is given, by default 1/(2·sqrt(d*·n)); s_t is the mean of |a| over a random sample.

    From then on, with

        α = s_t / s_{t−1}                            (1 where either is 0, or λ would stay 0 for ever)
        d̂ = share of elements with |a| ≥ α·λ
        β = 2 / (1 + exp(d* − d̂))
        γ = 0.95 where d̂/d* < 0.1, 1.05 where d̂/d* > 10, else 1

    λ ← λ·α·β·γ. Known weakness, from its authors' own logs: β is almost 1 at small d*, so inside a band of
    two decades around the target there is hardly any feedback. Agreement: the geometric mean of the ranks' λ.
    """

    scale: Tensor

    def __init__(self, *, threshold: float | None = None, seed: int = 0) -> None:
        super().__init__(threshold=threshold, seed=seed)
        self.register_buffer("scale", torch.zeros((), dtype=torch.float64))

    def take(
        self, grad_N: Tensor, residual_N: Tensor | None, density: float, agree: Agree = alone
    ) -> tuple[Tensor, Tensor]:
        # d̂ takes a pass of its own over the signal, so that is formed first.
        own_K, at_K = super().take(ops.accumulate(grad_N, residual_N), None, density, agree)
        if residual_N is not None:
            ops.clear(residual_N, at_K)
        return own_K, at_K

    def decide(self, grad_N: Tensor, residual_N: Tensor | None, density: float, agree: Agree) -> float:
        assert residual_N is None
        scale = self.sample_mean(grad_N, None, sample_size(grad_N.numel()))
        if int(self.step) == 0:
            given = self._first
            threshold = given if given is not None else 1 / (2 * math.sqrt(density * grad_N.numel()))
        else:
            before = float(self.scale)
            alpha = scale / before if scale > 0 and before > 0 else 1.0
            threshold = self._steer(grad_N, density, float(self.threshold) * alpha)
        self.scale.fill_(scale)
        return agreed_threshold(threshold, agree)

    def _steer(self, signal_N: Tensor, density: float, threshold: float) -> float:
        had = ops.count_above(signal_N, threshold) / signal_N.numel()
        beta = 2 / (1 + math.exp(density - had))
        ratio = had / density
        gamma = 0.95 if ratio < 0.1 else 1.05 if ratio > 10 else 1.0
        return threshold * beta * gamma
