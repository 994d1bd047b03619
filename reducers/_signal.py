"""The signal of one step, by group: its statistics, and the elements taken out of it, in few passes."""
# N = elements of the flat vector, K = elements taken, S = sampled elements

from collections.abc import Sequence

import torch
from torch import Tensor

from sage.reduction import Layout, ops


class Signal:
    """residual + gradient. The first pass over all of it adds the gradient to the residual."""

    def __init__(self, grad_N: Tensor, residual_N: Tensor | None, layout: Layout) -> None:
        self._grad_N, self._residual_N = grad_N, residual_N
        self.keeps = residual_N is not None
        """Whether elements that are taken are removed from the signal."""
        self.groups = layout.groups
        self.sizes = [stop - start for start, stop in layout.groups]
        """Number of elements of each group."""
        self.most: list[float] | None = None
        """Largest magnitude of each group, once the moments are known."""
        self.bounds = [0, *(stop for _, stop in layout.groups)]

    @property
    def dtype(self) -> torch.dtype:
        return self._grad_N.dtype if self._residual_N is None else self._residual_N.dtype

    @property
    def device(self) -> torch.device:
        return self._grad_N.device

    @property
    def now_N(self) -> Tensor:
        """The signal, accumulated."""
        if self._residual_N is not None:
            self._grad_N, self._residual_N = ops.accumulate(self._grad_N, self._residual_N), None
        return self._grad_N

    def of(self, group: int) -> Tensor:
        """A group of the signal, accumulated."""
        start, stop = self.groups[group]
        return self.now_N[start:stop]

    def moments(self, ranks: Sequence[Sequence[int]] = ()) -> list[ops.Moments]:
        """`ops.moments` of each group; accumulates."""
        moments = ops.moments(*self._unread(), self.bounds, ranks)
        self.most = [group.most for group in moments]
        return moments

    def moments_above(self, limits: Sequence[float]) -> tuple[list[ops.Moments], list[Tensor]]:
        """`ops.moments_above` of each group; accumulates."""
        moments, above = ops.moments_above(*self._unread(), self.bounds, limits)
        self.most = [group.most for group in moments]
        return moments, above

    def sampled(self, sizes: Sequence[int], ranks: Sequence[int], draws_S: Tensor) -> list[float]:
        """`ops.sampled` of each group; does not accumulate."""
        return ops.sampled(self._grad_N, self._residual_N, self.bounds, sizes, ranks, draws_S)

    def sample(self, group: int, *, num: int) -> Tensor:
        """About `num` elements of a group of twice as many or more, evenly spread in short runs."""
        start, stop = self.groups[group]
        grad_N = self._grad_N[start:stop]
        residual_N = None if self._residual_N is None else self._residual_N[start:stop]
        return ops.sample(grad_N, residual_N, every=(stop - start) // num)

    def take_above(self, thresholds: Sequence[float]) -> tuple[list[Tensor], list[Tensor]]:
        """Values and indices (int32, ascending) of elements at or above their group's λ; accumulates."""
        own_K, at_K, counts = ops.take_above_each(*self._unread(), self.bounds, thresholds, keep=self.keeps)
        return list(own_K.split(counts)), list(at_K.split(counts))

    def take_largest(self, group: int, k: int) -> tuple[Tensor, Tensor]:
        """Values and indices of the k largest of a group; accumulates."""
        x_N = self.of(group)
        own_K, at_K = ops.take_top(x_N, None, [0, x_N.numel()], [k])
        if self.keeps:
            x_N[at_K] = 0
        return own_K, at_K + self.groups[group][0]

    def put_back(self, own_K: Tensor, at_K: Tensor) -> None:
        """Return elements that were taken to the signal."""
        if self.keeps and at_K.numel() > 0:
            self.now_N[at_K] = own_K

    def sent(self, values: list[Tensor], at: list[Tensor], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Values in the dtype that is sent, and indices, of all groups; keeps the rounding errors."""
        own_K = values[0] if len(values) == 1 else torch.cat([self.now_N[:0], *values])
        at_K = at[0] if len(at) == 1 else torch.cat([self.now_N[:0].int(), *at])
        return ops.rounded(self.now_N, own_K, at_K, dtype=dtype, keep=self.keeps), at_K

    def _unread(self) -> tuple[Tensor, Tensor | None]:
        """Gradient and residual, before a pass that accumulates; after it there is no residual."""
        grad_N, residual_N = self._grad_N, self._residual_N
        if residual_N is not None:
            self._grad_N, self._residual_N = residual_N, None
        return grad_N, residual_N


def reaches(magnitude: float, threshold: float, dtype: torch.dtype) -> bool:
    """Whether a magnitude reaches a threshold, as in `ops.select_above`: NaN does.

    >>> reaches(0.1, 0.1, torch.float64), reaches(1.0, 1.00000001, torch.float32)
    (True, True)
    """
    return not magnitude < ops.threshold_in(threshold, dtype)
