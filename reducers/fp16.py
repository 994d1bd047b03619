"""fp16: dense all-reduce in half precision, half the bytes; a baseline on GPUs (PyTorch's DDP hook)."""
# N = elements of the flat vector

from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor

from sage.reduction import AllReduce, Reduced, Reducer, Wire, ops, phase


class Fp16(Reducer):
    """Divide by W, cast, all-reduce the sum and cast back, as PyTorch's fp16_compress_hook does.

    Dividing before the cast keeps the sum from overflowing. With a residual, which the hook does not have,
    the error of the cast is fed back; the rounding inside the all-reduce is not. On CPUs that is one rounding
    of a float32 sum (`Wire.sum_halves`), where the hook's all-reduce, as NCCL's on GPUs, rounds after each
    addition. With two ranks both give the same bits. `sums="half"` is the hook's: the backend's own
    all-reduce of halves, on any device. Which one is faster depends on the links.

    Payload bytes per rank: 2 per element, the input of one all-reduce. As for `exact`, the algorithm sends
    2·(W−1)/W times that on each link.
    """

    decides_by = "element"
    later = frozenset({"sums"})
    dtype: ClassVar[torch.dtype] = torch.float16
    precision = 2.0**-9
    spares_small = False

    def __init__(self, *, sums: Literal["fp32", "half"] = "fp32") -> None:
        """Create the reducer.

        Args:
            sums: How the casts are added on CPUs: in fp32 and rounded once, or in half precision by the
                backend's all-reduce, as PyTorch's hook does.
        """
        super().__init__()
        self.sums = sums
        self._share_N: Tensor | None = None  # memory for the cast, reused in every step

    def forward(self, grad_N: Tensor, residual_N: Tensor | None, wire: Wire) -> Reduced:
        with phase("select"):
            share_N = self._cast(grad_N, residual_N, wire.world_size)
        (wire.sum if self.sums == "half" else wire.sum_halves)(share_N)
        with phase("scatter"):
            return Reduced(ops.widen(share_N, grad_N))

    def is_all_reduce(self, world_size: int, device: torch.device) -> bool:
        # With two ranks it has the bits of `Wire.sum_halves`.
        return device.type == "cpu" and (world_size <= 2 or self.sums == "half")

    def as_all_reduce(self, grad_N: Tensor, world_size: int) -> AllReduce:
        share_N = self._cast(grad_N, None, world_size)
        return AllReduce(share_N, partial(ops.widen, share_N, grad_N))

    def _cast(self, grad_N: Tensor, residual_N: Tensor | None, world_size: int) -> Tensor:
        self._share_N = ops.cast_share(grad_N, residual_N, world_size, self.dtype, out_N=self._share_N)
        return self._share_N

    def payload(self, counts: list[int], rank: int) -> dict[str, int]:
        return {"values": 2 * counts[rank]}


REDUCER = Fp16
