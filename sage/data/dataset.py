"""The interface of a data set, and the distribution of its samples over ranks, epochs and batches.

Nothing here draws from a global generator: a batch is a function of (seed, epoch, rank, index). So a run that
is resumed in the middle of an epoch gets the same batches as an uninterrupted run.
"""

import hashlib
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from sage.validate import path

# N = samples, S = steps in an epoch, W = ranks, B = samples in one rank's batch

Batch = tuple[Tensor, ...]
"""CPU tensors whose meaning depends on the task, for example (images, labels)."""


class Dataset(Protocol):
    """A data set: its facts for the model, its training batches and its test batches."""

    @property
    def facts(self) -> Mapping[str, float]:
        """Numbers that models are built from and tasks use, by name: `num_classes`, `vocab_size`, ..."""
        ...

    checksums: dict[str, str]
    """The sha256 of each file that was read, by file name, for the manifest of the run."""

    def num_steps(self, *, batch_size: int, world_size: int) -> int:
        """Count the batches of an epoch; the number is the same on every rank."""
        ...

    def train_batches(
        self, *, epoch: int, rank: int, world_size: int, batch_size: int, seed: int, start: int = 0
    ) -> Iterator[Batch]:
        """Yield this rank's batches of an epoch from batch `start` on, the same as without interruption."""
        ...

    def test_batches(self, *, rank: int, world_size: int, batch_size: int) -> Iterator[Batch]:
        """Yield this rank's share of the test set; shares are disjoint, cover the set and may be uneven."""
        ...


def data_root(explicit: Path | None = None) -> Path:
    """Return the folder of the data sets: the given one, else `$SAGE_DATA_DIR`, else `./data`."""
    return path(explicit or os.environ.get("SAGE_DATA_DIR") or "data")


def cache_root(root: Path) -> Path | None:
    """Return the folder of the caches: below `root` if it can be written, else below the user's cache."""
    # Check the mode of the folder too, because `os.access` is always true for the superuser.
    if root.is_dir() and root.stat().st_mode & stat.S_IWUSR and os.access(root, os.W_OK):
        return root / ".cache"
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sage"
    except RuntimeError:  # the user has no home folder
        return None


def epoch_generator(seed: int, epoch: int, *more: int) -> torch.Generator:
    """Make the generator for (seed, epoch, ...): identical on every rank, different for other values."""
    key = hashlib.blake2b(repr((seed, epoch, *more)).encode(), digest_size=8)
    return torch.Generator().manual_seed(int.from_bytes(key.digest(), "little"))


def count_steps(num_samples: int, *, world_size: int, batch_size: int) -> int:
    """Count the full batches that each of `world_size` ranks gets from `num_samples` samples.

    >>> count_steps(1000, world_size=2, batch_size=128)
    3
    """
    if num_samples < world_size * batch_size:
        raise ValueError(
            f"{num_samples} training samples do not fill one step of {world_size} ranks x {batch_size} "
            f"samples: lower the batch size to at most {num_samples // world_size}, or use fewer ranks"
        )
    return num_samples // (world_size * batch_size)


def shard(order_N: Tensor, rank: int, world_size: int, batch_size: int) -> Tensor:
    """Select this rank's batches from an order of samples, one per row; drop an incomplete last step.

    Step s takes the next W·B samples of the order for any W, so that 2 ranks with batches of 64 process the
    same samples in each step as 1 rank with batches of 128.

    >>> shard(torch.arange(9), rank=1, world_size=2, batch_size=2)
    tensor([[2, 3],
            [6, 7]])
    """
    steps = count_steps(len(order_N), world_size=world_size, batch_size=batch_size)
    order_SWB = order_N[: steps * world_size * batch_size].view(steps, world_size, batch_size)
    return order_SWB[:, rank]


def check_limit(limit: int | None, count: int, option: str, *, of: str) -> None:
    """Check an option that keeps only some samples.

    Args:
        limit: Number of samples to keep; None: all of them.
        count: Number of samples that there are.
        of: What the samples are, for the message: "images", "tokens", ...

    Raises:
        ValueError: if there are fewer samples; the message names the option.
    """
    if limit is not None and not 1 <= limit <= count:
        raise ValueError(f"{option} is {limit}: give 1 to {count} {of}, or omit it for all of them")


def share(num_samples: int, *, rank: int, world_size: int) -> slice:
    """Split all `num_samples` samples into one contiguous slice per rank; lengths differ by at most one.

    >>> [share(10, rank=rank, world_size=3) for rank in range(3)]
    [slice(0, 3, None), slice(3, 6, None), slice(6, 10, None)]
    """
    return slice(num_samples * rank // world_size, num_samples * (rank + 1) // world_size)


def moved(batch: Batch, device: torch.device) -> Batch:
    """Copy the batch to a device."""
    return tuple(x.to(device, non_blocking=True) for x in batch)
