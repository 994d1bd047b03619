"""Random numbers that are everybody's own: drawn from a seed and a place in the run, from nothing else."""

import hashlib

import torch


def generator(seed: int, *place: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator for this seed and place, such as (step, rank); the same wherever and whenever it is made.

    Reducers draw from one of these, never from the global generators: a run can then be repeated and resumed
    to the bit, and ranks that leave themselves out of the place draw the same.

    >>> a, b = generator(0, 3), generator(0, 3)
    >>> torch.equal(torch.rand(4, generator=a), torch.rand(4, generator=b))
    True
    """
    return torch.Generator(device).manual_seed(seed_at(seed, *place))


def seed_at(seed: int, *place: int) -> int:
    """The seed of that generator."""
    digest = hashlib.blake2b(repr((seed, *place)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
