"""The randomised Hadamard transform, which spreads every element over all elements of its bucket."""
# N = elements of the vector

from collections.abc import Sequence

import torch
from torch import Tensor

from sage.ops import native, reference_hadamard
from sage.ops.sums import bounds_of

native.register("hadamard_", lambda *_: None)

HADAMARD_BLOCKS = tuple(2**power for power in range(4, 14))
"""Lengths that a bucket may have."""


def hadamard(x_N: Tensor, sizes: Sequence[int], bucket: int, *, key: int, inverse: bool = False) -> Tensor:
    """Transform each bucket of a vector in place: x becomes H·D·x/√L, or with `inverse` D·H·x/√L.

    H is the Walsh-Hadamard matrix of L elements (Sylvester's order), and D has a random sign for each
    element. Each of the two undoes the other, but for rounding. A bucket has `bucket` elements. The last one
    of a group may be shorter: it is cut into parts whose lengths are powers of two, the longest first, and
    each part is transformed by itself.

    Args:
        x_N: The vector; overwritten.
        sizes: Number of elements of each group; each begins a new bucket.
        bucket: One of `HADAMARD_BLOCKS`.
        key: Key of the signs (`sage.ops.random_bits`): the inverse needs the same.
        inverse: Whether to apply the inverse.

    >>> x_N = torch.arange(5.0)
    >>> y_N = hadamard(x_N.clone(), [5], 16, key=1)
    >>> torch.allclose(hadamard(y_N, [5], 16, key=1, inverse=True), x_N, atol=1e-6)
    True
    """
    if native.takes("hadamard_", x_N):
        torch.ops.sage.hadamard_.default(x_N, bounds_of(sizes), bucket, key, inverse)
        return x_N
    return reference_hadamard.hadamard(x_N, sizes, bucket, key, inverse=inverse)
