"""Shared by the methods that estimate a threshold from a group's magnitudes: groups, guards, moments."""
# N = elements of the flat vector, then of one group; K = elements selected; B = blocks

import math
from typing import Unpack

import torch
from torch import Tensor

from sage.reduction import Sparsifier, Travel, Wire, check_fraction, ops

from .topk import num_kept

BLOCK = 4096
"""Elements summed in float32; their sums are added up in float64."""
NARROW = 1e-6
"""What magnitudes may differ by, as a share of them, and still count as equal: sums are no more exact."""


class ByThreshold(Sparsifier):
    """Send |a| ≥ λ in every group, λ estimated from the group so that about k = max(1, ⌊d·n⌋) are sent.

    The number sent differs between ranks and steps; bytes are those of a `Sparsifier` with uneven counts.
    These guards are ours, in all methods that derive from this: where the estimate cannot be made, as of a
    constant group or one that is not finite, the k largest are sent, and where it lies above every magnitude
    the single largest is, so that no group is silent for ever.

    Args:
        density: Share of a group's elements to send, in (0, 1].
    """

    even = False
    limit: float = math.inf
    """More than so many times k are cut to the k largest of them."""

    def __init__(self, *, density: float = 0.01, **travel: Unpack[Travel]) -> None:
        super().__init__(**travel)
        self.density = check_fraction("density", density)
        self._asked = self.density
        self._threshold = 0.0

    def threshold(self, x_N: Tensor, k: int, group: int) -> float | None:
        """λ for a group of more than k elements; None where it cannot be estimated."""
        raise NotImplementedError

    def now(self) -> float:
        """This step's target density."""
        return self.density

    def heard(self, group: int, k: int, count: int) -> None:
        """Called with the number of elements selected in a group, where k were asked for."""

    def select(self, signal_N: Tensor, wire: Wire) -> Tensor:
        self._asked, self._threshold = self.now(), 0.0
        chosen = [signal_N.new_empty(0, dtype=torch.int64)]
        for group, (start, stop) in enumerate(self.layout.groups):
            k = num_kept(self._asked, stop - start)
            at_K, threshold = self._choose(signal_N[start:stop], k, group)
            self.heard(group, k, at_K.numel())
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
        return {"threshold": self._threshold, "density_asked": self._asked}


def largest(x_N: Tensor, k: int) -> tuple[Tensor, float]:
    """Indices (int64, ascending) of the k largest |x|, and the least of these magnitudes."""
    at_K = ops.select_top(x_N, k)
    return at_K, float(x_N[at_K].abs().min())


def norm_sum(x_N: Tensor, order: int) -> float:
    """Σ|x|^order, for order 1 or 2; torch's own float32 norm of 10^7 elements may be off by half a percent.

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
    """Mean and maximum of |x|, of a vector that is not empty."""
    least, most = torch.stack(torch.aminmax(x_N)).tolist()
    return norm_sum(x_N, 1) / x_N.numel(), max(abs(least), abs(most))
