"""Windows of a text: samples for language models that carry no state from batch to batch."""

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sage.data.dataset import Batch, count_steps, epoch_generator, shard, share
from sage.data.text import first

# N = tokens of a stream, T = tokens in a window, W = ranks, B = windows in one rank's batch

Stream = npt.NDArray[np.unsignedinteger[Any]]
"""The tokens of a text, in memory or in a file that is mapped into memory."""

Sampling = Literal["random", "strided"]
"""`random`: each window starts at a random token, as in nanoGPT, so windows may overlap. `strided`: the
stream is cut into windows from a random token on, and their order is shuffled; each is used once."""


class Windows:
    """A `sage.data.dataset.Dataset` of windows of T tokens, with the tokens that follow as targets.

    The windows of a batch depend on (seed, epoch, index of the batch) and the rank alone, and those of a step
    are the same for any number of ranks with W·B windows in all. An epoch has ⌊N/T⌋ - 1 windows, as many as
    fit into the stream from any of its first T tokens on.
    """

    def __init__(
        self,
        train_N: Stream,
        test_N: Stream,
        *,
        vocab_size: int,
        block_size: int,
        windows: Sampling,
        checksums: dict[str, str],
        character_level: bool,
        limit_train: int | None = None,
        limit_test: int | None = None,
    ) -> None:
        """Store the streams; a limit keeps only their first tokens.

        Args:
            block_size: Tokens in a window, T.
            windows: How the windows of an epoch are chosen.
            character_level: Whether each token is a character or a byte.

        Raises:
            ValueError: if a stream is too short for one window.
        """
        self.train_N = first(limit_train, train_N, "limit_train")
        self.test_N = first(limit_test, test_N, "limit_test")
        self.block_size, self.windows, self.checksums = block_size, windows, checksums
        longest = min(len(self.train_N) // 2, len(self.test_N) - 1)
        if block_size > longest:
            raise ValueError(
                f"block_size is {block_size}, but there are {len(self.train_N)} tokens for training, which "
                f"must fill two windows, and {len(self.test_N)} for evaluation: use at most {longest}"
            )
        self.facts = {"vocab_size": vocab_size, "block_size": block_size}
        if character_level:
            self.facts["character_level"] = 1

    @property
    def num_windows(self) -> int:
        """Number of windows in an epoch."""
        return len(self.train_N) // self.block_size - 1

    def num_steps(self, *, batch_size: int, world_size: int) -> int:
        """Count the batches of an epoch; the number is the same on every rank."""
        return count_steps(self.num_windows, world_size=world_size, batch_size=batch_size)

    def train_batches(
        self, *, epoch: int, rank: int, world_size: int, batch_size: int, seed: int, start: int = 0
    ) -> Iterator[Batch]:
        """Yield this rank's batches (tokens_BT, targets_BT), from batch `start` on."""
        num_steps, T = self.num_steps(batch_size=batch_size, world_size=world_size), self.block_size
        if self.windows == "strided":
            generator = epoch_generator(seed, epoch)
            offset = int(torch.randint(T, (), generator=generator))
            order_N = torch.randperm(self.num_windows, generator=generator)
            for number_B in shard(order_N, rank, world_size, batch_size)[start:]:
                yield self._batch(self.train_N, offset + number_B * T)
            return
        for index in range(start, num_steps):
            starts_WB = torch.randint(
                len(self.train_N) - T,
                (world_size, batch_size),
                generator=epoch_generator(seed, epoch, index),
            )
            yield self._batch(self.train_N, starts_WB[rank])

    def test_batches(self, *, rank: int, world_size: int, batch_size: int) -> Iterator[Batch]:
        """Yield this rank's share of the evaluated stream, cut into windows from its first token on.

        Every token is predicted once, except the first one and those after the last whole window.
        """
        own = share((len(self.test_N) - 1) // self.block_size, rank=rank, world_size=world_size)
        for number_B in torch.arange(own.start, own.stop).split(batch_size):
            if len(number_B):
                yield self._batch(self.test_N, number_B * self.block_size)

    def _batch(self, stream_N: Stream, starts_B: Tensor) -> Batch:
        ends = [(start, start + self.block_size + 1) for start in starts_B.tolist()]
        windows_BT = np.stack([stream_N[start:end] for start, end in ends]).astype(np.int64)
        tokens_BT = torch.from_numpy(windows_BT)
        return tokens_BT[:, :-1], tokens_BT[:, 1:]
