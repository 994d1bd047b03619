"""The largest elements of each chunk of a vector by magnitude."""
# N = elements of the vector, P = chunks, K = elements selected

from collections.abc import Sequence

import torch
from torch import Tensor

from sage.ops import native, reference_chunks
from sage.ops.reference_chunks import CHUNK_ROW as CHUNK_ROW

MOST_IN_CHUNK = 4096
"""Elements of a chunk up to which the kernels work; longer ones are left to plain torch."""

native.register(
    "largest_of_chunks",
    lambda x, chunks, num: (native.vector(x, num, x.dtype), native.vector(x, num, torch.int32)),
)


def chunk_table(places: Sequence[tuple[int, int]], lengths: Sequence[int], counts: Sequence[int]) -> Tensor:
    """The table of chunks (int32, P, 4) that `largest_of_chunks` takes, on the CPU.

    Args:
        places: Index of each chunk's first element, and elements from one of its rows of 64 to the next.
        lengths: Number of elements of each chunk.
        counts: Number of elements to take from each chunk.

    >>> chunk_table([(0, 64), (128, 64)], [100, 7], [2, 1]).tolist()
    [[0, 64, 100, 0], [128, 64, 7, 2]]
    """
    place_P2 = torch.tensor(places, dtype=torch.int32).view(-1, 2)
    length_P, count_P = (torch.tensor(each, dtype=torch.int32) for each in (lengths, counts))
    start_P = count_P.cumsum(0, dtype=torch.int32) - count_P
    return torch.cat((place_P2, torch.stack((length_P, start_P), 1)), 1)


def largest_of_chunks(
    x_N: Tensor, chunk_P4: Tensor, num: int, *, longest: int = MOST_IN_CHUNK
) -> tuple[Tensor, Tensor]:
    """The elements of largest magnitude of each chunk: values, and positions in their chunk (int32), K each.

    Positions ascend in each chunk. Of equal magnitudes the lower position is taken first. NaN is larger than
    infinity. A chunk has rows of 64 elements, of which the last may be shorter: element i is
    x[first + ⌊i/64⌋·stride + i mod 64]. On a GPU the table is not examined, because the host would have to
    wait: of a chunk that is not in the vector, the values are NaN and the positions -1.

    Args:
        x_N: The vector, of any floating-point dtype.
        chunk_P4: For each chunk: first, stride (at least 64), its number of elements, and the number of
            elements taken from those before it (int32; `chunk_table`).
        num: Number of elements taken from all chunks, K.
        longest: Number of elements of the longest chunk.

    >>> x_N = torch.tensor([1.0, -3.0, 2.0, 3.0, 5.0, 5.0])
    >>> largest_of_chunks(x_N, chunk_table([(0, 64), (4, 64)], [4, 2], [2, 1]), 3)
    (tensor([-3.,  3.,  5.]), tensor([1, 3, 0], dtype=torch.int32))
    """
    if longest <= MOST_IN_CHUNK and native.takes("largest_of_chunks", x_N, chunk_P4):
        values_K, at_K = torch.ops.sage.largest_of_chunks.default(x_N, chunk_P4, num)
        return values_K, at_K
    return reference_chunks.largest_of_chunks(x_N, chunk_P4, num, longest)
