"""Vectors with one of two labels, in memory, for convex problems with a known optimum."""

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Annotated, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from sage.data.dataset import Batch, check_limit, count_steps, epoch_generator, shard, share
from sage.data.fetch import DataError
from sage.data.logistic import minimum
from sage.validate import Range

# N = samples, B = samples in a batch, F = features

Scaling = Literal["none", "max-abs", "standard"]
L2 = Annotated[float, Range(0, open="(")]
Count = Annotated[int, Range(1)]


class Vectors:
    """A `sage.data.dataset.Dataset` of float32 vectors with labels -1 and 1.

    What is minimised is the loss over the training samples, so evaluations are on the same samples. The fact
    `optimum` is the minimum of the logistic regression with the fact `l2`.
    """

    def __init__(
        self,
        x_NF: NDArray[np.float64],
        label_N: NDArray[np.float64],
        *,
        checksums: dict[str, str],
        source: str,
        l2: L2 | None = None,
        scaling: Scaling = "none",
        bias: bool = False,
        limit_train: Count | None = None,
    ) -> None:
        """Scale the features, and map the smaller label to -1 and the larger one to 1.

        Args:
            checksums: The checksums of what was read.
            source: Name of the data in error messages.
            l2: Factor of the regulariser; None: 1/N.
            scaling: Of each feature: none; divide by its largest absolute value; or subtract the mean and
                divide by the standard deviation.
            bias: Append a feature that is always 1.
            limit_train: Use only this number of samples, the first ones.
        """
        check_limit(limit_train, len(label_N), "limit_train", of="samples")
        x_NF, label_N = _scaled(x_NF[:limit_train], scaling), label_N[:limit_train]
        if bias:
            x_NF = np.column_stack((x_NF, np.ones(len(x_NF))))
        labels = np.unique(label_N)
        if len(labels) != 2:
            raise DataError(f"{source} has {len(labels)} different labels; logistic regression needs 2")
        self.x_NF = torch.from_numpy(x_NF.astype(np.float32))
        self.y_N = torch.from_numpy(np.where(label_N == labels[1], 1.0, -1.0).astype(np.float32))
        self.l2 = 1 / len(label_N) if l2 is None else l2
        self.checksums = checksums

    @property
    def facts(self) -> Mapping[str, float]:
        """The number of features, the factor of the regulariser and the optimum."""
        return {"num_features": self.x_NF.shape[1], "l2": self.l2, "optimum": self._optimum}

    @cached_property
    def _optimum(self) -> float:
        """The minimum, which is computed on first use: preparing the data does not need it."""
        return minimum(self.x_NF.numpy(), self.y_N.numpy(), self.l2)

    def num_steps(self, *, batch_size: int, world_size: int) -> int:
        """Count the batches of an epoch; the number is the same on every rank."""
        return count_steps(len(self.y_N), world_size=world_size, batch_size=batch_size)

    def train_batches(
        self, *, epoch: int, rank: int, world_size: int, batch_size: int, seed: int, start: int = 0
    ) -> Iterator[Batch]:
        """Yield this rank's batches (x_BF, y_B) of an epoch from batch `start` on; each is shuffled anew."""
        order_N = torch.randperm(len(self.y_N), generator=epoch_generator(seed, epoch))
        for at_B in shard(order_N, rank, world_size, batch_size)[start:]:
            yield self.x_NF[at_B], self.y_N[at_B]

    def test_batches(self, *, rank: int, world_size: int, batch_size: int) -> Iterator[Batch]:
        """Yield this rank's share of the training samples, in order; the last batch may be short."""
        own = share(len(self.y_N), rank=rank, world_size=world_size)
        x_NF, y_N = self.x_NF[own], self.y_N[own]
        for begin in range(0, len(y_N), batch_size):
            yield x_NF[begin : begin + batch_size], y_N[begin : begin + batch_size]


def _scaled(x_NF: NDArray[np.float64], scaling: Scaling) -> NDArray[np.float64]:
    if scaling == "none":
        return x_NF
    shift_F = x_NF.mean(0) if scaling == "standard" else np.zeros(x_NF.shape[1])
    scale_F = x_NF.std(0) if scaling == "standard" else np.abs(x_NF).max(0)
    return (x_NF - shift_F) / np.where(scale_F == 0, 1, scale_F)
