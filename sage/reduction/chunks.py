"""Chunks of 4,096 elements: tiles of 64 × 64 of a matrix, or runs of a tensor; the largest of each are taken.

SparseLoCo (Sarfi et al., 2025, arXiv 2508.15706) selects within such chunks, so that an index takes 12 bits.
"""
# N = elements of the flat vector, P = chunks, K = elements selected, B = bytes

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
    table_P4: Tensor
    """The chunks, as `ops.largest_of_chunks` takes them."""

    def __init__(self, layout: Layout, take: Callable[[int], int]) -> None:
        super().__init__()
        spans = [span for span in layout.spans if span.numel]
        self.ascends = not any(_is_tiled(span) for span in spans)
        """Whether `indices` of ascending positions ascend: no tensor is divided into tiles."""
        lengths = [length for span in spans for length in _lengths(span)]
        self.counts = [take(length) for length in lengths]
        """Elements taken from each chunk (P)."""
        self.num = sum(self.counts)
        """Elements taken from all chunks, K."""
        places = [place for span in spans for place in _places(span)]
        table_P4 = ops.chunk_table(places, lengths, self.counts)
        counts_P = torch.tensor(self.counts, dtype=torch.int64)
        first_P, stride_P = table_P4[:, :2].unbind(1)
        self.register_buffer("first_K", first_P.repeat_interleave(counts_P), persistent=False)
        self.register_buffer("stride_K", stride_P.repeat_interleave(counts_P), persistent=False)
        self.register_buffer("table_P4", table_P4, persistent=False)
        self.sizes = _by_group(layout, self.counts)
        """Number of elements taken from each of the layout's groups (G)."""

    def largest(self, x_N: Tensor) -> tuple[Tensor, Tensor]:
        """The elements of largest magnitude: values, and positions in their chunk (int32), K each.

        Positions ascend in each chunk. Of equal magnitudes the lower position is taken first. NaN is larger
        than infinity.
        """
        return ops.largest_of_chunks(x_N, self.table_P4, self.num)

    def indices(self, at_K: Tensor) -> Tensor:
        """Indices in the vector (int32) of positions in their chunk, in the same order."""
        return self.first_K + (at_K >> 6) * self.stride_K + (at_K & EDGE - 1)


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
