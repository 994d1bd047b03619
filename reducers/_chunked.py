"""Vectors in chunks, so that what is computed of a chunk needs little memory and stays in the cache."""

from collections.abc import Iterator

from torch import Tensor

CACHED = 65_536
"""Elements of a chunk on a CPU, a multiple of 4."""
LARGE = 2**24
"""Elements of a chunk on another device, where each operation has to be started."""


def chunks(*vectors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Views of the same elements of each of these vectors, which have the same length, from the first on."""
    size = CACHED if vectors[0].is_cpu else LARGE
    return zip(*(vector.split(size) for vector in vectors), strict=True)
