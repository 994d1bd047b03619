"""fp16: dense all-reduce in half precision, half the bytes; a baseline on GPUs (PyTorch's DDP hook)."""
# N = elements of the flat vector

from typing import ClassVar

import torch
from torch import Tensor

from sage.reduction import Reduced, Reducer, Wire, phase


class Fp16(Reducer):
    """Divide by W, cast, all-reduce the sum and cast back, as PyTorch's fp16_compress_hook does.

    Dividing before the cast keeps the sum from overflowing. With a residual, which the hook does not have,
    the error of the cast is fed back; the rounding inside the all-reduce is not.

    Payload bytes per rank: 2 per element.
    """

    dtype: ClassVar[torch.dtype] = torch.float16
    precision = 2.0**-9
    spares_small = False

    def forward(self, grad_N: Tensor, residual_N: Tensor | None, wire: Wire) -> Reduced:
        with phase("select"):
            signal_N = grad_N if residual_N is None else residual_N.add_(grad_N)
            share_N = (signal_N / wire.world_size).to(self.dtype)
            if residual_N is not None:
                residual_N -= share_N.to(residual_N.dtype) * wire.world_size
                residual_N.nan_to_num_(0.0, 0.0, 0.0)  # NaN and infinity are in the mean, and only once
        wire.sum(share_N)
        with phase("scatter"):
            return Reduced(grad_N.copy_(share_N))

    def payload(self, counts: list[int], rank: int) -> dict[str, int]:
        return {"values": 2 * counts[rank]}


REDUCER = Fp16
