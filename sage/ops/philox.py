"""Random bits that depend on a key and an element's position alone (Philox4x32-10).

Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011. Every device and thread
count gives the same bits, and so does every division of the vector into parts whose positions are known.
"""
# N = elements

from bisect import bisect_right
from dataclasses import dataclass

import torch
from torch import Tensor

from sage.ops import native, reference_philox

_native = torch.ops.sage

native.register("random_bits_", lambda out, key, first: None)


@dataclass(frozen=True)
class Positions:
    """Positions of a vector's elements, on which their random bits depend: runs of consecutive ones.

    The elements from `starts[r]` up to the next start have the positions `firsts[r]`, `firsts[r] + 1`, and so
    on. By default an element's position is its index.

    >>> random_bits(5, 7, positions=Positions((0, 2), (9, 0))).equal(random_bits(11, 7)[[9, 10, 0, 1, 2]])
    True
    """

    starts: tuple[int, ...] = (0,)
    """First element of each run, ascending from 0."""
    firsts: tuple[int, ...] = (0,)
    """Position of each run's first element, 0 or more."""

    def part(self, start: int, stop: int) -> "Positions":
        """Positions of the elements [start, stop) of the vector, at least one.

        >>> Positions((0, 2), (9, 0)).part(1, 4)
        Positions(starts=(0, 1), firsts=(10, 0))
        """
        last = bisect_right(self.starts, start) - 1
        runs = [(0, self.firsts[last] + start - self.starts[last])]
        later = zip(self.starts[last + 1 :], self.firsts[last + 1 :], strict=True)
        runs += [(at - start, first) for at, first in later if at < stop]
        starts, firsts = zip(*runs, strict=True)
        return Positions(starts, firsts)


INDICES = Positions()
"""The position of an element is its index."""


def random_bits(
    n: int, key: int, *, positions: Positions = INDICES, device: torch.device | str = "cpu"
) -> Tensor:
    """Random integers from 0 to 65,535 for the elements of a vector (int32, N).

    Args:
        n: Number of elements.
        key: Key, at least 0 and below 2^63, such as `sage.rng.seed_at` gives.
        positions: Positions of the elements.
        device: Device of the result.

    >>> whole_N = random_bits(1000, 7)
    >>> torch.equal(random_bits(300, 7, positions=Positions((0,), (500,))), whole_N[500:800])
    True
    """
    out_N = torch.empty(n, dtype=torch.int32, device=device)
    if not native.takes("random_bits_", out_N, dtype=torch.int32):
        return reference_philox.random_bits_(out_N, key, positions.starts, positions.firsts)
    stops = (*positions.starts[1:], n)
    for start, stop, first in zip(positions.starts, stops, positions.firsts, strict=True):
        _native.random_bits_.default(out_N[start:stop], key, first)
    return out_N
