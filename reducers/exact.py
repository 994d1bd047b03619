"""exact: dense fp32 all-reduce, no compression; the baseline."""

from torch import Tensor

from sage.reduction import Reduced, Reducer, Wire


class Exact(Reducer):
    """Mean over ranks by one all-reduce. Payload bytes per rank: 4 per element."""

    decides_by = "element"
    is_all_reduce = True
    spares_small = False

    def forward(self, grad_N: Tensor, residual_N: Tensor | None, wire: Wire) -> Reduced:
        if residual_N is not None:
            grad_N += residual_N
            residual_N.zero_()
        return Reduced(wire.mean(grad_N))

    def payload(self, counts: list[int], rank: int) -> dict[str, int]:
        return {"values": 4 * counts[rank]}


REDUCER = Exact
