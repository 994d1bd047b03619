"""Chunks of 4,096 elements: tiles of 64 × 64 of a matrix, or runs of a tensor; the largest of each are taken.

SparseLoCo (Sarfi et al., 2025, arXiv 2508.15706) selects within such chunks, so that an index takes 12 bits.
"""
# N = elements of the flat vector, P = chunks, C = CHUNK, K = elements selected, B = bytes

from collections.abc import Callable, Sequence
from itertools import accumulate

import torch
from torch import Tensor, nn

from sage import ops
from sage.reduction.layout import Layout, Span

EDGE = 64
CHUNK = EDGE * EDGE
INDEX_BITS = 12
"""Bits of a position in a chunk: 8 low ones in a byte, and 4 high ones."""


class Chunks(nn.Module):
    """The chunks of a layout's tensors, and how many elements are taken from each.

    A matrix whose two sides are multiples of 64 is divided into tiles of 64 × 64 elements, one row of tiles
    after another. Any other tensor is divided into runs of 4,096 elements; its last run may be shorter. A
    chunk never contains elements of two tensors, whatever the layout's groups are.

    Args:
        layout: The tensors.
        take: Number of elements to take from a chunk, given its number of elements; at least 1.
    """

    first_K: Tensor
    """Index in the vector of the first element of each selected element's chunk (int32)."""
    stride_K: Tensor
    """Elements from one row of 64 of that chunk to the next (int32)."""
    counts_P: Tensor

    def __init__(self, layout: Layout, take: Callable[[int], int]) -> None:
        super().__init__()
        self._spans = [span for span in layout.spans if span.numel]
        self._is_tiled = [_is_tiled(span) for span in self._spans]
        lengths = [length for span in self._spans for length in _lengths(span)]
        self.counts = [take(length) for length in lengths]
        """Elements taken from each chunk (P)."""
        self.num = sum(self.counts)
        """Elements taken from all chunks, K."""
        places = [place for span in self._spans for place in _places(span)]
        counts_P = torch.tensor(self.counts, dtype=torch.int64)
        first_P, stride_P = torch.tensor(places, dtype=torch.int32).view(-1, 2).unbind(1)
        self.register_buffer("first_K", first_P.repeat_interleave(counts_P), persistent=False)
        self.register_buffer("stride_K", stride_P.repeat_interleave(counts_P), persistent=False)
        self.register_buffer("counts_P", counts_P, persistent=False)
        self.sizes = _by_group(layout, self.counts)
        """Number of elements taken from each of the layout's groups (G)."""

    def largest(self, x_N: Tensor) -> Tensor:
        """Positions in their chunk of the elements of largest magnitude (int32, K), ascending in each chunk.

        Of equal magnitudes the lower position is taken first. NaN is larger than infinity.
        """
        if not self.counts:
            return torch.empty(0, dtype=torch.int32, device=x_N.device)
        # The magnitude's bits, and below them the position from the end: all keys of a chunk differ.
        at_C = torch.arange(CHUNK, device=x_N.device)
        key_PC = ops.magnitude_bits(self._rows(x_N)).long()
        key_PC.mul_(CHUNK).add_(CHUNK - 1 - at_C)
        most = max(self.counts)
        at_PK = CHUNK - 1 - key_PC.topk(most, dim=1).values % CHUNK  # largest first
        taken_PK = torch.arange(most, device=x_N.device) < self.counts_P[:, None]
        at_PK = at_PK.masked_fill_(~taken_PK, CHUNK).sort(1).values
        return (at_PK if self.num == at_PK.numel() else at_PK[taken_PK]).view(-1).int()

    def indices(self, at_K: Tensor) -> Tensor:
        """Indices in the vector (int32) of positions in their chunk, in the same order."""
        return self.first_K + (at_K >> 6) * self.stride_K + (at_K & EDGE - 1)

    @property
    def ascends(self) -> bool:
        """Whether `indices` of ascending positions ascend: no tensor is divided into tiles."""
        return not any(self._is_tiled)

    def _rows(self, x_N: Tensor) -> Tensor:
        """The chunks (float32, P, C); a shorter one is filled up with zeros, which `largest` takes last."""
        x_PC = torch.zeros(len(self.counts), CHUNK, device=x_N.device)
        start = 0
        for span, is_tiled in zip(self._spans, self._is_tiled, strict=True):
            part = x_N[span.start : span.stop]
            stop = start + -(-span.numel // CHUNK)
            rows = x_PC[start:stop]
            if is_tiled:
                down, across = (side // EDGE for side in span.shape)
                tiles = part.view(down, EDGE, across, EDGE).transpose(1, 2)
                rows.view(down, across, EDGE, EDGE).copy_(tiles)
            else:
                rows.view(-1)[: span.numel].copy_(part)
            start = stop
        return x_PC


def pack_positions(at_K: Tensor) -> Tensor:
    """Positions below 4,096 in 12 bits each (uint8, K + ⌈K/2⌉): K low bytes, then the high 4 bits of each.

    >>> pack_positions(torch.tensor([1, 0xABC, 0xFFF], dtype=torch.int32)).tolist()
    [1, 188, 255, 160, 15]
    """
    low_K, high_K = (at_K & 0xFF).to(torch.uint8), (at_K >> 8).to(torch.uint8)
    return torch.cat((low_K, ops.pack(high_K, INDEX_BITS - 8)))


def unpack_positions(bytes_B: Tensor, num: int) -> Tensor:
    """The positions (int32, K) of `pack_positions`'s bytes."""
    high_K = ops.unpack(bytes_B[num:].contiguous(), INDEX_BITS - 8, num)
    return bytes_B[:num].int() | high_K.int() << 8


def _is_tiled(span: Span) -> bool:
    return len(span.shape) == 2 and all(side % EDGE == 0 for side in span.shape)


def _lengths(span: Span) -> list[int]:
    """Number of elements of each chunk of a tensor."""
    whole, rest = divmod(span.numel, CHUNK)
    return [CHUNK] * whole + [rest] * (rest > 0)


def _places(span: Span) -> list[tuple[int, int]]:
    """Index of the first element of each chunk of a tensor, and elements between two of its rows."""
    if not _is_tiled(span):
        return [(start, EDGE) for start in range(span.start, span.stop, CHUNK)]
    across = span.shape[1]
    corners = [
        span.start + row * across + column
        for row in range(0, span.shape[0], EDGE)
        for column in range(0, across, EDGE)
    ]
    return [(corner, across) for corner in corners]


def _by_group(layout: Layout, counts: Sequence[int]) -> list[int]:
    """Number of elements taken from each group."""
    sums = [0, *accumulate(counts)]
    sizes, chunk = [0] * len(layout.groups), 0
    for span, group in zip(layout.spans, layout.group_of_span(), strict=True):
        stop = chunk + -(-span.numel // CHUNK)
        sizes[group] += sums[stop] - sums[chunk]
        chunk = stop
    return sizes
