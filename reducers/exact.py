"""exact: dense fp32 all-reduce, no compression; the baseline."""

from functools import partial

import torch
from torch import Tensor

from sage.reduction import AllReduce, Reduced, Reducer, Wire


class Exact(Reducer):
    """Mean over ranks by one all-reduce. Payload bytes per rank: 4 per element."""

    decides_by = "element"
    spares_small = False

    def forward(self, grad_N: Tensor, residual_N: Tensor | None, wire: Wire) -> Reduced:
        if residual_N is not None:
            grad_N += residual_N
            residual_N.zero_()
        return Reduced(wire.mean(grad_N))

    def is_all_reduce(self, world_size: int, device: torch.device) -> bool:
        return True

    def as_all_reduce(self, grad_N: Tensor, world_size: int) -> AllReduce:
        return AllReduce(grad_N, partial(grad_N.div_, world_size))

    def payload(self, counts: list[int], rank: int) -> dict[str, int]:
        return {"values": 4 * counts[rank]}


REDUCER = Exact
