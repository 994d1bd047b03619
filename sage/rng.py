"""Random generators that depend only on a seed and a position in the run."""

import hashlib

import torch


def generator(seed: int, *place: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Make the generator for this seed and position, such as (step, rank); equal inputs give equal numbers.

    Reducers draw from such a generator, never from the global generators. So a run can be repeated and
    resumed with bitwise identical results, and ranks draw the same numbers if the position omits the rank.

    >>> a, b = generator(0, 3), generator(0, 3)
    >>> torch.equal(torch.rand(4, generator=a), torch.rand(4, generator=b))
    True
    """
    return torch.Generator(device).manual_seed(seed_at(seed, *place))


def seed_at(seed: int, *place: int) -> int:
    """Compute the seed of `generator` for this seed and position."""
    digest = hashlib.blake2b(repr((seed, *place)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
