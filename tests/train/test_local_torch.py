"""Tests that post-local SGD gives the parameters of torch's hook and model averager.

torch averages the weights θ_i; SAGE subtracts the mean of θ − θ_i from θ, which rounds differently. torch's
first round has a single step, and SAGE's as many as the others: the averager's `warmup_steps` is therefore
set to the first step after which SAGE averages.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from mounted_runs import processes, step, training
from small import Points, small_network
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.post_localSGD_hook import (
    PostLocalSGDState,
    post_localSGD_hook,
)
from torch.distributed.algorithms.model_averaging.averagers import PeriodicModelAverager
from torch.nn.parallel import DistributedDataParallel

from sage.comm.wire import Wire

DENSE_STEPS, PERIOD, STEPS = 4, 3, 13


def by_torch(wire: Wire, warmup_steps: int) -> list[list[Tensor]]:
    """The weights of this rank after each step of a plain loop with torch's hook and averager."""
    torch.manual_seed(1)
    model = DistributedDataParallel(small_network())
    state = PostLocalSGDState(None, None, DENSE_STEPS, post_local_gradient_allreduce=False)
    model.register_comm_hook(state, post_localSGD_hook)
    averager = PeriodicModelAverager(period=PERIOD, warmup_steps=warmup_steps)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    found: list[list[Tensor]] = []
    for epoch in range(2):
        for x_BF, y_B in Points().train_batches(
            epoch=epoch, rank=wire.rank, world_size=wire.world_size, batch_size=2, seed=0
        ):
            sgd.zero_grad()
            nn.functional.cross_entropy(model(x_BF), y_B).backward()
            sgd.step()
            averager.average_parameters(model.parameters())
            found.append([p.detach().clone() for p in model.parameters()])
    return found[:STEPS]


def by_sage(wire: Wire, folder: Path) -> list[list[Tensor]]:
    given: dict[str, Any] = {"reducer": "exact", "local_steps": PERIOD, "local_from": DENSE_STEPS}
    run = training(wire, folder, **given)
    return [[p.detach().clone() for p in step(run, 1).model.parameters()] for _ in range(STEPS)]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """By rank: the weights after each step by torch, by torch with its own rounds, and by SAGE."""
    folder = tmp_path_factory.mktemp("runs")

    def work(wire: Wire) -> tuple[Any, Any, Any]:
        assert dist.is_initialized()
        first = DENSE_STEPS + PERIOD - 1
        return by_torch(wire, first), by_torch(wire, DENSE_STEPS), by_sage(wire, folder)

    return processes(2, work)


def test_post_local_sgd_has_the_parameters_of_torchs_hook_and_averager(both: list[Any]) -> None:
    for torchs, _, sages in both:
        for theirs, ours in zip(torchs, sages, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_the_ranks_agree_after_the_same_steps(both: list[Any]) -> None:
    def agreeing(by: int) -> list[int]:
        pairs = zip(both[0][by], both[1][by], strict=True)
        return [number for number, (one, other) in enumerate(pairs) if all(map(torch.equal, one, other))]

    assert agreeing(0) == agreeing(2) == [0, 1, 2, 3, 6, 9, 12]
    assert agreeing(1) == [0, 1, 2, 3, 4, 7, 10]  # with warmup_steps as in torch's example
