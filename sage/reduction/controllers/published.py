"""SAGE's published rule (kljp/sage): follow the scale of |a|, with weak feedback from the density."""
# N = elements of the vector, K = elements selected

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sage import ops

from .base import Agree, Controller, agreed_threshold, local_only, sample_size, slovin


class Published(Controller):
    """The rule of kljp/sage's code. λ_0 is by default 1/(2·sqrt(d*·n)); s_t is the mean of a sample of |a|.

    At every later step

        α = s_t / s_{t−1}                            (1 if either is 0; otherwise λ would stay 0)
        d̂ = share of elements with |a| ≥ α·λ
        β = 2 / (1 + exp(d* − d̂))
        γ = 0.95 if d̂/d* < 0.1, 1.05 if d̂/d* > 10, else 1

    and λ ← λ·α·β·γ. Known weakness, from its authors' own logs: β is almost 1 at small d*, so there is hardly
    any feedback within two decades around the target. Agreement, which is ours: the geometric mean of the
    ranks' λ.

    The sample of |a| has by default ⌈N/(1 + N·e²)⌉ elements (Slovin's formula, e = 0.05), all equally likely,
    as in the later repositories of SAGE's authors. `sample_by_tensor` is kljp/sage's own: each of ⌊N/(1 +
    N·e²)⌋ draws first takes a tensor, all equally likely, and then one of its elements. Small tensors then
    have the same weight as large ones, and s_t does not estimate the mean over elements: if a tensor of 2
    elements stays at 10 and one of 998 goes from 1 to 2, α is about 1.09 instead of 1.98.

    Args:
        threshold: Initial λ.
        seed: Seed of the samples.
    """

    scale: Tensor

    def __init__(self, *, threshold: float | None = None, seed: int = 0) -> None:
        super().__init__(threshold=threshold, seed=seed)
        self._tensors: list[tuple[int, int]] | None = None
        self.register_buffer("scale", torch.zeros((), dtype=torch.float64))

    def sample_by_tensor(self, tensors: Sequence[tuple[int, int]]) -> None:
        """Sample as kljp/sage does: draw a tensor, then one of its elements.

        Args:
            tensors: (start, stop) of each parameter in the vector.
        """
        self._tensors = [(start, stop) for start, stop in tensors if stop > start]

    def sample_indices(self, n: int, size: int) -> Tensor:
        if self._tensors is None:
            return super().sample_indices(n, size)
        rng = self.sample_generator()
        start_T, stop_T = torch.tensor(self._tensors).T
        tensor_S = torch.randint(len(self._tensors), (max(1, math.floor(slovin(n))),), generator=rng)
        place_S = torch.rand(tensor_S.shape, dtype=torch.float64, generator=rng)
        return start_T[tensor_S] + (place_S * (stop_T - start_T)[tensor_S]).long()

    def take(
        self, grad_N: Tensor, residual_N: Tensor | None, density: float, agree: Agree = local_only
    ) -> tuple[Tensor, Tensor]:
        # Form the signal first, because d̂ needs a separate pass over it.
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
        achieved = ops.count_above(signal_N, threshold) / signal_N.numel()
        beta = 2 / (1 + math.exp(density - achieved))
        ratio = achieved / density
        gamma = 0.95 if ratio < 0.1 else 1.05 if ratio > 10 else 1.0
        return threshold * beta * gamma
