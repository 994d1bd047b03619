"""Base class of the reducers that estimate a threshold per group, with fallbacks and accurate moments."""
# N = elements of the flat vector, then of one group; K = elements selected; B = blocks

import math
from typing import Unpack

import torch
from torch import Tensor

from sage.reduction import Sparsifier, SparsifierOptions, Wire, check_fraction, ops

from .topk import num_kept

BLOCK = 4096
"""Elements summed in float32; the sums of the blocks are added in float64."""
NARROW = 1e-6
"""Relative difference below which magnitudes count as equal; the sums are not more accurate than this."""


class ByThreshold(Sparsifier):
    """Send |a| ≥ λ in every group, with λ estimated so that about k = max(1, ⌊d·n⌋) elements are sent.

    a is the group's signal, n its number of elements, d the density. The number of elements sent differs
    between ranks and steps. Payload bytes are those of a `Sparsifier` with uneven counts.

    Two fallbacks are ours and apply to every subclass. If λ cannot be estimated, for example because the
    group is constant or not finite, the k largest magnitudes are sent. If λ exceeds every magnitude, the
    single largest element is sent, so that every group keeps sending.

    Args:
        density: Share of each group's elements to send, in (0, 1].

    Raises:
        ValueError: if `density` or an option of `Sparsifier` is out of range.
    """

    even = False
    limit: float = math.inf
    """If more than `limit`·k elements exceed λ, only the k largest of them are sent."""

    def __init__(self, *, density: float = 0.01, **options: Unpack[SparsifierOptions]) -> None:
        super().__init__(**options)
        self.density = check_fraction("density", density)
        self._target_density = self.density
        self._threshold = 0.0

    def threshold(self, x_N: Tensor, k: int, group: int) -> float | None:
        """Estimate λ for a group of more than k elements.

        Args:
            x_N: The group's signal.
            k: Number of elements to send.
            group: Index of the group in the layout.

        Returns:
            λ, or None if it cannot be estimated.
        """
        raise NotImplementedError

    def now(self) -> float:
        """This step's target density."""
        return self.density

    def record_count(self, group: int, k: int, count: int) -> None:
        """Called after each group's selection with the group's index, its target k and its actual count."""

    def select(self, signal_N: Tensor, wire: Wire) -> Tensor:
        self._target_density, self._threshold = self.now(), 0.0
        chosen = [signal_N.new_empty(0, dtype=torch.int64)]
        for group, (start, stop) in enumerate(self.layout.groups):
            k = num_kept(self._target_density, stop - start)
            at_K, threshold = self._choose(signal_N[start:stop], k, group)
            self.record_count(group, k, at_K.numel())
            self._threshold += threshold * (stop - start) / self.layout.numel if stop > start else 0.0
            chosen.append(at_K + start)
        return torch.cat(chosen)

    def _choose(self, x_N: Tensor, k: int, group: int) -> tuple[Tensor, float]:
        if k == x_N.numel():
            return torch.arange(k, device=x_N.device), 0.0
        threshold = self.threshold(x_N, k, group)
        if threshold is None or not 0 < threshold < math.inf:
            return largest(x_N, k)
        at_K = ops.select_above(x_N, threshold)
        if at_K.numel() == 0:
            return largest(x_N, 1)
        if at_K.numel() > self.limit * k:
            at_k, threshold = largest(x_N[at_K], k)
            return at_K[at_k], threshold
        return at_K, threshold

    def report(self) -> dict[str, float]:
        return {"threshold": self._threshold, "density_asked": self._target_density}


def largest(x_N: Tensor, k: int) -> tuple[Tensor, float]:
    """Indices (int64, ascending) of the k largest |x|, and the smallest of these magnitudes."""
    at_K = ops.select_top(x_N, k)
    return at_K, float(x_N[at_K].abs().min())


def norm_sum(x_N: Tensor, order: int) -> float:
    """Σ|x|^order for order 1 or 2, accurate for long vectors.

    torch's own float32 norm of 10^7 elements can be off by half a percent.

    >>> norm_sum(torch.tensor([3.0, -4.0]), 1), norm_sum(torch.tensor([3.0, -4.0]), 2)
    (7.0, 25.0)
    """
    if x_N.numel() == 0:
        return 0.0
    whole = x_N.numel() - x_N.numel() % BLOCK
    norm = torch.linalg.vector_norm
    parts_B = torch.cat((norm(x_N[:whole].view(-1, BLOCK), order, dim=1), norm(x_N[whole:], order).view(1)))
    return float((parts_B.double() ** order).sum())


def extremes(x_N: Tensor) -> tuple[float, float]:
    """Mean and maximum of |x| for a non-empty vector."""
    least, most = torch.stack(torch.aminmax(x_N)).tolist()
    return norm_sum(x_N, 1) / x_N.numel(), max(abs(least), abs(most))
