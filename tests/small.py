"""A data set and networks that are small enough to train in milliseconds."""

from collections.abc import Iterator

import torch
from torch import nn

from sage.data.dataset import Batch, count_steps, epoch_generator, shard, share


class Points:
    """Points of three classes: 32 training and 10 test points; neither number is divisible by three."""

    facts = {"num_classes": 3}
    checksums: dict[str, str] = {}

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.x_NF = torch.randn(42, 6, generator=generator)
        self.y_N = self.x_NF[:, :3].argmax(1)

    def num_steps(self, *, batch_size: int, world_size: int) -> int:
        return count_steps(32, world_size=world_size, batch_size=batch_size)

    def train_batches(
        self, *, epoch: int, rank: int, world_size: int, batch_size: int, seed: int, start: int = 0
    ) -> Iterator[Batch]:
        order_N = torch.randperm(32, generator=epoch_generator(seed, epoch))
        for at_B in shard(order_N, rank, world_size, batch_size)[start:]:
            yield self.x_NF[at_B], self.y_N[at_B]

    def test_batches(self, *, rank: int, world_size: int, batch_size: int) -> Iterator[Batch]:
        mine = share(10, rank=rank, world_size=world_size)
        yield from zip(
            self.x_NF[32:][mine].split(batch_size), self.y_N[32:][mine].split(batch_size), strict=True
        )


def small_network(*, norm: bool = False) -> nn.Module:
    torch.manual_seed(1)
    between = nn.BatchNorm1d(16) if norm else nn.ReLU()
    return nn.Sequential(nn.Linear(6, 16), between, nn.Linear(16, 3))
