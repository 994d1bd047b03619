"""What a data set answers, and how its samples are dealt out to ranks, epochs and batches.

Nothing here draws from a global generator: a batch is a function of (seed, epoch, rank, index), so a run that
stops in the middle of an epoch and goes on sees the batches it would have seen.
"""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from sage.validate import path

# N = samples, S = steps in an epoch, W = ranks, B = samples in one rank's batch

Batch = tuple[Tensor, ...]
"""CPU tensors whose meaning is the task's, (images, labels) for one."""


class Dataset(Protocol):
    """A data set: what a model must know of it, its training batches and its test batches."""

    facts: dict[str, int]
    """What models are built from, by their parameters' names: `num_classes`, `channels`, `vocab_size`, ..."""

    checksums: dict[str, str]
    """The sha256 of everything that was read, by file name, for the run's manifest."""

    def num_steps(self, *, batch_size: int, world_size: int) -> int:
        """Count the batches of an epoch, the same on every rank."""
        ...

    def train_batches(
        self, *, epoch: int, rank: int, world_size: int, batch_size: int, seed: int, start: int = 0
    ) -> Iterator[Batch]:
        """Yield this rank's batches of an epoch, from batch `start` on, as if uninterrupted."""
        ...

    def test_batches(self, *, rank: int, world_size: int, batch_size: int) -> Iterator[Batch]:
        """Yield this rank's share of the test set; the shares are disjoint, cover it, and may be uneven."""
        ...


def data_root(explicit: Path | None = None) -> Path:
    """Say where data sets lie: the folder given, else `$SAGE_DATA_DIR`, else `./data`."""
    return path(explicit or os.environ.get("SAGE_DATA_DIR") or "data")


def epoch_generator(seed: int, epoch: int, *more: int) -> torch.Generator:
    """Make the generator that belongs to (seed, epoch, ...): the same everywhere, unlike any other."""
    key = hashlib.blake2b(repr((seed, epoch, *more)).encode(), digest_size=8)
    return torch.Generator().manual_seed(int.from_bytes(key.digest(), "little"))


def count_steps(num_samples: int, *, world_size: int, batch_size: int) -> int:
    """Count the full batches that every one of `world_size` ranks gets out of `num_samples`.

    >>> count_steps(1000, world_size=2, batch_size=128)
    3
    """
    if num_samples < world_size * batch_size:
        raise ValueError(
            f"{num_samples} training samples do not fill one step of {world_size} ranks x {batch_size} "
            f"samples: lower the batch size to at most {num_samples // world_size}, or the number of ranks"
        )
    return num_samples // (world_size * batch_size)


def shard(order_N: Tensor, rank: int, world_size: int, batch_size: int) -> Tensor:
    """Deal an order of samples to ranks: this rank's batches, one a row, without the tail that fills no step.

    Step s takes the next W·B of the order whatever W is, so that 2 ranks of 64 see in each step what 1 rank
    of 128 does.

    >>> shard(torch.arange(9), rank=1, world_size=2, batch_size=2)
    tensor([[2, 3],
            [6, 7]])
    """
    steps = count_steps(len(order_N), world_size=world_size, batch_size=batch_size)
    order_SWB = order_N[: steps * world_size * batch_size].view(steps, world_size, batch_size)
    return order_SWB[:, rank]


def share(num_samples: int, *, rank: int, world_size: int) -> slice:
    """Cut `num_samples` into one run a rank, all of them covered, their lengths at most one apart.

    >>> [share(10, rank=rank, world_size=3) for rank in range(3)]
    [slice(0, 3, None), slice(3, 6, None), slice(6, 10, None)]
    """
    return slice(num_samples * rank // world_size, num_samples * (rank + 1) // world_size)


def moved(batch: Batch, device: torch.device) -> Batch:
    """The batch on a device."""
    return tuple(x.to(device, non_blocking=True) for x in batch)
