"""Random bits that depend on a key and an element's position alone (Philox4x32-10).

Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011. Every device and thread
count gives the same bits, and so does every division of the vector into parts.
"""
# N = elements

import torch
from torch import Tensor

from sage.ops import native, reference_philox

_native = torch.ops.sage

native.register("random_bits_", lambda out, key, first: None)


def random_bits(n: int, key: int, *, first: int = 0, device: torch.device | str = "cpu") -> Tensor:
    """Random integers from 0 to 65,535 for the elements [first, first + n) of a vector (int32, N).

    Args:
        n: Number of elements.
        key: Key, at least 0 and below 2^63, such as `sage.rng.seed_at` gives.
        first: Position of the first element.
        device: Device of the result.

    >>> whole_N = random_bits(1000, 7)
    >>> torch.equal(random_bits(300, 7, first=500), whole_N[500:800])
    True
    """
    out_N = torch.empty(n, dtype=torch.int32, device=device)
    if native.takes("random_bits_", out_N, dtype=torch.int32):
        _native.random_bits_.default(out_N, key, first)
        return out_N
    return reference_philox.random_bits_(out_N, key, first)
