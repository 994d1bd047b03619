"""The contract of controllers: from the signal and the target density to the selection.

A controller uses this rank's signal, the target and `agree`, which returns the mean over ranks of a few
numbers, or, without agreement, the numbers unchanged. It can therefore be replayed on recorded gradients
without a network.
"""
# N = elements of the vector, K = elements selected, S = sampled elements, B = numbers to agree on

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from sage import ops

Agree = Callable[[Tensor], Tensor]
"""Maps this rank's numbers to their mean over ranks. All ranks call it equally often, with equal sizes."""

ERROR_MARGIN = 0.05
"""e in Slovin's formula."""


def local_only(x_B: Tensor) -> Tensor:
    """No agreement: returns this rank's numbers unchanged."""
    return x_B


class Controller(nn.Module):
    """Updates a threshold λ at every step. State is held in buffers; `state_dict()` is the checkpoint.

    Args:
        threshold: Initial λ; None: chosen by the controller.
        seed: Seed of the samples; the elements drawn at a step depend only on it and the step.
    """

    threshold: Tensor
    step: Tensor

    def __init__(self, *, threshold: float | None = None, seed: int = 0) -> None:
        super().__init__()
        self._first = threshold
        self._seed = seed
        self.register_buffer("threshold", torch.zeros((), dtype=torch.float64))
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def take(
        self, grad_N: Tensor, residual_N: Tensor | None, density: float, agree: Agree = local_only
    ) -> tuple[Tensor, Tensor]:
        """Accumulate the signal and take this step's selection by λ, which `threshold` then holds.

        Args:
            grad_N: The gradient; without a residual it is the signal, and is not modified.
            residual_N: Accumulated into; keeps what is not taken.
            density: Target density.
            agree: Mean over ranks.

        Returns:
            Values, and indices (int32, ascending).
        """
        if grad_N.numel() == 0:
            return grad_N.clone(), torch.empty(0, dtype=torch.int32, device=grad_N.device)
        self.threshold.fill_(self.decide(grad_N, residual_N, density, agree))
        self.step += 1
        dtype = signal_dtype(grad_N, residual_N)
        return ops.take_above(grad_N, residual_N, float(self.threshold), dtype=dtype)

    def decide(self, grad_N: Tensor, residual_N: Tensor | None, density: float, agree: Agree) -> float:
        """λ of this step, computed before the single pass over the (non-empty) vectors that selects by it."""
        raise NotImplementedError

    def learn(self, density: float) -> None:
        """Called after a step with the share of elements selected, averaged over the ranks."""

    def sample_mean(self, grad_N: Tensor, residual_N: Tensor | None, size: int) -> float:
        """Mean of |a| over a sample of `size` elements; elements that are not finite count as 0."""
        at_S = self.sample_indices(grad_N.numel(), size).to(grad_N.device)
        signal_S = grad_N[at_S] if residual_N is None else residual_N[at_S] + grad_N[at_S]
        return float(signal_S.abs().nan_to_num(0.0, 0.0, 0.0).mean(dtype=torch.float64))

    def sample_indices(self, n: int, size: int) -> Tensor:
        """Indices (int64) of this step's sample from a vector of n elements; all are equally likely."""
        return torch.randint(n, (size,), generator=self.sample_generator())

    def sample_generator(self) -> torch.Generator:
        """Random number generator of this step's sample."""
        return torch.Generator().manual_seed(self._seed * 1_000_003 + int(self.step))


def signal_dtype(grad_N: Tensor, residual_N: Tensor | None) -> torch.dtype:
    """Dtype of residual + gradient: a bf16 gradient may have a float32 residual."""
    return grad_N.dtype if residual_N is None else residual_N.dtype


def sample_size(n: int) -> int:
    """Slovin's formula, rounded up.

    >>> sample_size(10), sample_size(1_000_000)
    (10, 400)
    """
    return math.ceil(slovin(n))


def slovin(n: int) -> float:
    """N/(1 + N·e²): the sample size that estimates a share of N elements to within e."""
    return n / (1 + n * ERROR_MARGIN**2)


def num_wanted(density: float, n: int) -> int:
    """k = max(1, ⌊d·n⌋).

    >>> num_wanted(0.29, 100), num_wanted(1e-9, 100)
    (29, 1)
    """
    return max(1, math.floor(density * n + 1e-9))


def agreed_threshold(threshold: float, agree: Agree) -> float:
    """Geometric mean of the ranks' thresholds, which must be above 0."""
    own = torch.tensor([math.log(threshold)], dtype=torch.float64)
    return threshold if agree is local_only else math.exp(float(agree(own)))
