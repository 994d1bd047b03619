"""Base class of the reducers that estimate a threshold per group, with two fallbacks."""
# N = elements of the flat vector, K = elements selected

import math
from collections.abc import Sequence
from typing import Unpack

from torch import Tensor

from sage.reduction import Sparsifier, SparsifierOptions, Wire, check_fraction

from ._signal import Signal, reaches
from .topk import num_kept

NARROW = 1e-6
"""Relative difference below which magnitudes count as equal."""


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

    def estimate(self, signal: Signal, counts: Sequence[int]) -> list[float | None]:
        """Estimate λ for each group; the passes over the signal are those of `signal`.

        Args:
            signal: The signal.
            counts: Number k of elements to send of each group. Where it is all of them, λ is not used.

        Returns:
            λ of each group, or None where it cannot be estimated.
        """
        raise NotImplementedError

    def now(self) -> float:
        """This step's target density."""
        return self.density

    def num_to_send(self, n: int) -> int:
        """k of a group of n elements at this step's target density."""
        return num_kept(self.now(), n)

    def record_count(self, group: int, k: int, count: int) -> None:
        """Called after each group's selection with the group's index, its target k and its actual count."""

    def select(self, signal_N: Tensor, wire: Wire) -> Tensor:
        return self.take(signal_N, None, wire)[1].long()

    def take(self, grad_N: Tensor, residual_N: Tensor | None, wire: Wire) -> tuple[Tensor, Tensor]:
        self._target_density, weighted = self.now(), 0.0
        signal = Signal(grad_N, residual_N, self.layout)
        counts = [self.num_to_send(n) for n in signal.sizes]
        estimates = self.estimate(signal, counts)
        thresholds = [
            0.0 if k == n else estimate if estimate is not None and 0 < estimate < math.inf else None
            for n, k, estimate in zip(signal.sizes, counts, estimates, strict=True)
        ]
        # If λ exceeds all elements of a group, the largest is taken in the same pass.
        most = signal.most or [math.inf] * len(counts)
        limits = [
            math.inf if threshold is None else min(threshold, top)
            for threshold, top in zip(thresholds, most, strict=True)
        ]
        values, at = signal.take_above(limits)
        for group, (n, k, threshold) in enumerate(zip(signal.sizes, counts, thresholds, strict=True)):
            used = 0.0
            if threshold != 0:
                values[group], at[group], used = self._corrected(
                    signal, group, k, threshold, values[group], at[group]
                )
            self.record_count(group, k, at[group].numel())
            weighted += used * n / max(1, self.layout.numel)
        self._threshold = weighted
        return signal.sent(values, at, self.dtype)

    def _corrected(
        self, signal: Signal, group: int, k: int, threshold: float | None, own_K: Tensor, at_K: Tensor
    ) -> tuple[Tensor, Tensor, float]:
        """The elements a group sends, of those that reach its threshold, and their smallest magnitude."""
        num = at_K.numel()
        if threshold is not None and signal.most and not reaches(signal.most[group], threshold, signal.dtype):
            signal.put_back(own_K[1:], at_K[1:])  # if several are equal, the first is sent
            return own_K[:1], at_K[:1], signal.most[group]
        if threshold is not None and 0 < num <= self.limit * k:
            return own_K, at_K, threshold
        signal.put_back(own_K, at_K)
        own_K, at_K = signal.take_largest(group, k if threshold is None or num else 1)
        return own_K, at_K, float(own_K.abs().min())

    def report(self) -> dict[str, float]:
        return {"threshold": self._threshold, "density_asked": self._target_density}
