"""Sparsifiers whose ranks select from disjoint parts of the vector."""
# N = elements of the vector, K = elements this rank selects, M = of all ranks, U = of the union

from typing import Literal

import torch
from torch import Tensor

from sage import ops
from sage.comm.wire import Wire
from sage.reduction.exchange import mean_at
from sage.reduction.layout import Layout
from sage.reduction.reducer import Reduced, Sparsifier, check_fraction
from sage.timing import phase


class ExclusiveSparsifier(Sparsifier):
    """A sparsifier whose ranks select from disjoint parts of the vector, so that no index is selected twice.

    The indices are gathered; then all ranks' values at all of them are all-reduced. Payload bytes per rank: 8
    for the count, 4 per index that it selected, and 4 (or 2) per value at all indices that any rank selected.

    With `mask="momentum"` the elements that are sent are chosen one step before: from a moving average of
    each rank's gradients, m ← β·m + (1 − β)·g, by the same rule, in the same parts. The indices of step t + 1
    are gathered at the end of step t, when they are not needed yet; the first step gathers its own too. This
    is the mask of SCAPE (arXiv 2607.01678, 2026), which takes the first moment of its optimiser, from the
    owners of optimiser shards, and overlaps the gather with computation, which is not done here. It is from a
    summary and not from the paper's text: unverified. The residual is that of the signal, as without it.

    Args:
        density: Share of the vector's elements to send, over all ranks, in (0, 1].
        mask: What the elements are selected from: the step's signal, or the average of earlier gradients.
        mask_beta: β of this average, at least 0 and below 1.

    Raises:
        ValueError: if an option is out of range.
    """

    even = False
    moment_N: Tensor
    mask_N: Tensor
    """Whether an element is sent in the next step (bool); the same on every rank."""
    has_mask: Tensor

    def __init__(
        self,
        *,
        density: float = 0.01,
        values: Literal["fp32", "fp16"] = "fp32",
        mask: Literal["signal", "momentum"] = "signal",
        mask_beta: float = 0.9,
    ) -> None:
        super().__init__(values=values)
        self.density = check_fraction("density", density)
        if mask not in ("signal", "momentum"):
            raise ValueError(f"mask={mask!r}: expected signal or momentum")
        if not 0 <= mask_beta < 1:
            raise ValueError(f"mask_beta={mask_beta!r}: expected a number from 0 to below 1")
        self.is_late, self._beta = mask == "momentum", mask_beta

    def bind(self, layout: Layout) -> None:
        super().bind(layout)
        if self.is_late:
            self.register_buffer("moment_N", torch.zeros(layout.numel))
            self.register_buffer("mask_N", torch.zeros(layout.numel, dtype=torch.bool))
            self.register_buffer("has_mask", torch.zeros((), dtype=torch.bool))

    def forward(self, grad_N: Tensor, residual_N: Tensor | None, wire: Wire) -> Reduced:
        if self.is_late:
            return self.one_step_late(grad_N, residual_N, wire)
        with phase("select"):
            signal_N = self.accumulate(grad_N, residual_N, wire)
            at_K = self.select(signal_N, wire)
        counts, (at_M,) = wire.gather_ragged(indices=at_K.int())
        keep = residual_N is not None
        at_U = ops.union(at_M, signal_N.numel())
        reduced = mean_at(signal_N, at_U, wire, dtype=self.dtype, keep=keep, out_N=grad_N)
        self.learn(counts, reduced.mean_N, wire)
        return reduced

    def one_step_late(self, grad_N: Tensor, residual_N: Tensor | None, wire: Wire) -> Reduced:
        """Send the elements of the mask of the step before, and choose those of the next step."""
        with phase("select"):
            # One rank's gradient that is not finite must not stay in its average for ever.
            self.moment_N.mul_(self._beta).add_(grad_N, alpha=1 - self._beta).nan_to_num_(0.0, 0.0, 0.0)
            signal_N = ops.accumulate(grad_N, residual_N)
        if not self.has_mask:
            self._choose(wire)
        at_U = self.mask_N.nonzero().view(-1).int()
        keep = residual_N is not None
        reduced = mean_at(signal_N, at_U, wire, dtype=self.dtype, keep=keep, out_N=grad_N)
        self._choose(wire)
        return reduced

    def _choose(self, wire: Wire) -> None:
        with phase("select"):
            at_K = self.take(self.moment_N.clone(), None, wire)[1]
        counts, (at_M,) = wire.gather_ragged(indices=at_K)
        self.mask_N.zero_()
        self.mask_N[at_M.long()] = True
        self.has_mask.fill_(True)
        self.learn(counts, self.moment_N, wire)

    def take(self, grad_N: Tensor, residual_N: Tensor | None, wire: Wire) -> tuple[Tensor, Tensor]:
        signal_N = self.accumulate(grad_N, residual_N, wire)
        at_K = self.select(signal_N, wire)
        return ops.take(signal_N, at_K, dtype=self.dtype, keep=residual_N is not None), at_K.int()

    def accumulate(self, grad_N: Tensor, residual_N: Tensor | None, wire: Wire) -> Tensor:
        """The signal. A method that needs statistics of it for `select` can compute them in the same pass."""
        return ops.accumulate(grad_N, residual_N)

    def payload(self, counts: list[int], rank: int) -> dict[str, int] | None:
        return None  # the number of elements a rank selected does not follow from the number it sent

    def report(self) -> dict[str, float]:
        return {"density_asked": self.density}
