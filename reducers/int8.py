"""int8: 8-bit integers with a scale per block, by a two-way all-reduce (common practice, no single paper)."""
# N = elements of the vector, P = blocks

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from sage.reduction import (
    Buckets,
    Parts,
    Quantiser,
    Reduced,
    Wire,
    num_buckets,
    payload_two_way,
    reduce_two_way,
)


class Int8(Quantiser):
    """Each element becomes the nearest multiple of s/127, where s is the largest magnitude in its block.

    Block-wise scaling to 127 is common practice; this form follows no single paper. Every rank reduces 1/W of
    the vector, where W is the number of ranks: it receives all ranks' codes of that share and sends a code of
    their mean (`sage.reduction.two_way`). With a residual, the errors of both codes are fed back.

    Payload bytes per rank: W + 1 times the code of a share. A code takes 1 byte per element (`values`) and 4
    bytes per block (`scales`); each share and each group begins a new block.

    Args:
        block: Number of elements that share a scale, 1 or more.

    Raises:
        ValueError: if `block` is below 1.
    """

    grouping = "model"
    largest: float = 127.0
    """Code of the largest magnitude."""

    def __init__(self, *, block: int = 256) -> None:
        super().__init__()
        if block < 1:
            raise ValueError(f"block={block!r}: expected 1 element or more")
        self._block = block

    def encode(self, x_N: Tensor, sizes: Sequence[int], wire: Wire) -> Parts:
        x_N = x_N.float()
        blocks = Buckets(sizes, self._block)
        scale_P = blocks.norms(x_N, "max")
        # NaN and infinity are sent in the scale.
        codes_N = blocks.ratios(x_N, scale_P).mul_(self.largest).nan_to_num_(0.0)
        return {"values": self.to_bytes(codes_N), "scales": scale_P}

    def decode(self, parts: Mapping[str, Tensor], sizes: Sequence[int]) -> Tensor:
        ratio_N = self.from_bytes(parts["values"]).div_(self.largest)
        return Buckets(sizes, self._block).scale_(ratio_N, parts["scales"])

    def to_bytes(self, codes_N: Tensor) -> Tensor:
        """Convert numbers of magnitude `largest` or less to bytes (uint8, N)."""
        return codes_N.round_().to(torch.int8).view(torch.uint8)

    def from_bytes(self, bytes_N: Tensor) -> Tensor:
        """Convert bytes (uint8, N) back to numbers (float32, N)."""
        return bytes_N.view(torch.int8).float()

    def bytes_of(self, sizes: Sequence[int]) -> dict[str, int]:
        return {"values": sum(sizes), "scales": 4 * num_buckets(sizes, self._block)}

    def forward(self, grad_N: Tensor, residual_N: Tensor | None, wire: Wire) -> Reduced:
        return reduce_two_way(self, grad_N, residual_N, self.sizes, wire)

    def payload(self, counts: list[int], rank: int) -> dict[str, int]:
        return payload_two_way(self, self.sizes, len(counts))


REDUCER = Int8
