"""Feedback: the logarithmic error of the last step's density corrects the threshold. The rule is ours."""
# N = elements of the vector, K = elements selected

import math

import torch
from torch import Tensor

from sage import ops

from .base import Agree, Controller, agreed_threshold, local_only, num_wanted, sample_size

SAMPLE = 64
"""One element in SAMPLE is sampled to estimate the signal's scale, but at least Slovin's number."""

FARTHEST = math.log(100)
"""Limit of the magnitude of the logarithmic density error; also the error of an empty selection."""


class Feedback(Controller):
    """Corrects λ by the logarithmic error of the density over all ranks at the last step.

        log λ ← log λ + ½ log α + gain · log(d̂/d*) / h

    α is the ratio of the mean of |a| to that of the last step, from a sample; it is halved because the mean
    is far below λ and also changes with the residual. h is the exponent of the tail by Hill (1975):
    1/mean(log(|a|/λ)) over the selection. If the tail falls as λ^−h, a gain of 1 would correct the whole
    error at once; a smaller gain does not follow noise. The initial λ is the first signal's own quantile if
    none is given. Agreement: the geometric mean of the ranks' λ.

    Args:
        threshold: Initial λ.
        seed: Seed of the samples.
        gain: Share of the error that one step corrects.
    """

    scale: Tensor
    error: Tensor
    tail: Tensor
    target: Tensor

    def __init__(self, *, threshold: float | None = None, seed: int = 0, gain: float = 0.3) -> None:
        super().__init__(threshold=threshold, seed=seed)
        self._gain = gain
        self._silent = False
        for name, value in (("scale", 0.0), ("error", 0.0), ("tail", 3.0), ("target", 1.0)):
            self.register_buffer(name, torch.tensor(value, dtype=torch.float64))

    def take(
        self, grad_N: Tensor, residual_N: Tensor | None, density: float, agree: Agree = local_only
    ) -> tuple[Tensor, Tensor]:
        own_K, at_K = super().take(grad_N, residual_N, density, agree)
        self.target.fill_(density)
        left_N = grad_N if residual_N is None else residual_N
        self._silent = at_K.numel() == 0 and float(self.scale) == 0 and not bool(left_N.any())
        beyond_K = (own_K.abs() / float(self.threshold)).log()
        beyond_K = beyond_K[beyond_K.isfinite()]
        total = float(beyond_K.sum(dtype=torch.float64))
        if total > 0:
            self.tail.fill_(min(10.0, max(0.5, beyond_K.numel() / total)))
        return own_K, at_K

    def decide(self, grad_N: Tensor, residual_N: Tensor | None, density: float, agree: Agree) -> float:
        n = grad_N.numel()
        scale = self.sample_mean(grad_N, residual_N, max(sample_size(n), n // SAMPLE))
        before = float(self.scale)
        self.scale.fill_(scale)
        limits = torch.finfo(grad_N.dtype)
        if int(self.step) == 0 or float(self.threshold) <= limits.smallest_normal:  # no λ yet
            threshold = self._first or own_quantile(grad_N, residual_N, density)
        else:
            alpha = scale / before if scale > 0 and before > 0 else 1.0
            push = self._gain * float(self.error) / float(self.tail)
            threshold = float(self.threshold) * math.sqrt(alpha) * math.exp(push)
        # λ stays a finite normal number, so that factors can still change it after empty steps or overflow.
        return agreed_threshold(min(limits.max, max(limits.smallest_normal, threshold)), agree)

    def learn(self, density: float) -> None:
        error = math.log(density / float(self.target)) if density > 0 else -FARTHEST
        if self._silent:  # an empty selection from a signal of zeros carries no information on λ
            error = 0.0
        self.error.fill_(max(-FARTHEST, min(FARTHEST, error)))


def own_quantile(grad_N: Tensor, residual_N: Tensor | None, density: float) -> float:
    """The k-th largest |a| of a non-empty signal."""
    signal_N = grad_N if residual_N is None else residual_N + grad_N
    n = signal_N.numel()
    taken_K, _ = ops.take_top(signal_N, None, [0, n], [num_wanted(density, n)], dtype=signal_N.dtype)
    return ops.least_magnitude(taken_K)
