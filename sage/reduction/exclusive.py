"""Sparsifiers whose ranks select from disjoint parts of the vector."""
# N = elements of the vector, K = elements this rank selects, M = of all ranks, U = of the union

from typing import Literal

from torch import Tensor

from sage import ops
from sage.comm.wire import Wire
from sage.reduction.exchange import mean_at
from sage.reduction.reducer import Reduced, Sparsifier, check_fraction
from sage.timing import phase


class ExclusiveSparsifier(Sparsifier):
    """A sparsifier whose ranks select from disjoint parts of the vector, so that no index is selected twice.

    The indices are gathered; then all ranks' values at all of them are all-reduced. Payload bytes per rank: 8
    for the count, 4 per index that it selected, and 4 (or 2) per value at all indices that any rank selected.

    Args:
        density: Share of the vector's elements to send, over all ranks, in (0, 1].

    Raises:
        ValueError: if an option is out of range.
    """

    even = False

    def __init__(self, *, density: float = 0.01, values: Literal["fp32", "fp16"] = "fp32") -> None:
        super().__init__(values=values)
        self.density = check_fraction("density", density)

    def forward(self, grad_N: Tensor, residual_N: Tensor | None, wire: Wire) -> Reduced:
        with phase("select"):
            signal_N = self.accumulate(grad_N, residual_N, wire)
            at_K = self.select(signal_N, wire)
        counts, (at_M,) = wire.gather_ragged(indices=at_K.int())
        keep = residual_N is not None
        at_U = ops.union(at_M, signal_N.numel())
        reduced = mean_at(signal_N, at_U, wire, dtype=self.dtype, keep=keep, out_N=grad_N)
        self.learn(counts, reduced.mean_N, wire)
        return reduced

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
