"""Tests of DeMo and Dion in a plain script on two processes."""

from typing import Any

import torch
from gloo import processes
from torch import Tensor, nn

from sage.comm.wire import Wire
from sage.optim import DeMo, Dion


def work(wire: Wire) -> list[list[Tensor]]:
    found = []
    for make, options in ((DeMo, {"k": 2, "edge": 4}), (Dion, {"rank_fraction": 0.25})):
        found.append(trained(wire.rank, make, options))
    return found


def trained(rank: int, make: Any, options: dict[str, Any]) -> list[Tensor]:
    torch.manual_seed(rank)
    model = nn.Sequential(nn.Linear(12, 8), nn.Linear(8, 3))
    optimizer = make(model.named_parameters(), lr=0.01, **options)
    for _ in range(4):
        optimizer.zero_grad()
        model(torch.randn(5, 12)).square().sum().backward()
        optimizer.step()
    optimizer.check_replicas()
    assert optimizer.total.payload_bytes == 4 * sum(optimizer.payload().values())
    assert optimizer.total.compression > 1
    optimizer.close()
    return [p.detach() for p in model.parameters()]


def test_ranks_that_begin_with_other_parameters_and_batches_have_the_same_parameters() -> None:
    first, second = processes(2, work)
    for of_first, of_second in zip(first, second, strict=True):
        assert all(map(torch.equal, of_first, of_second))
