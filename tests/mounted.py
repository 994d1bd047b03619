"""A small model, its batches, and user scripts that train it through the mounts."""

from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any

import torch
import torch._dynamo  # DDP imports it; this import runs once, before ranks are forked
import torch.nn.functional as F
from gloo import processes
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import sage
from sage.comm.wire import Wire
from sage.mount.ddp import DdpMount
from sage.mount.whole import ModelMount
from sage.reducers.exact import Exact
from sage.reduction.reducer import Reduced

Backward = Callable[[nn.Module, int, int], None]
"""Forward and backward of a model on one rank at one step."""

SEVERAL = 0.004
"""A `bucket_cap_mb` that cuts the network into several buckets."""


def alone(test: Callable[[], None]) -> Callable[[], None]:
    """Run a test with world size 1 in a separate process, because gloo does not support later forks."""

    @wraps(test)
    def inside() -> None:
        processes(1, lambda wire: test())

    return inside


def network() -> nn.Sequential:
    """Return a network of ten tensors with 4 to 5,760 elements each."""
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten()),
        *(nn.Linear(144, 40), nn.ReLU(), nn.Linear(40, 20), nn.ReLU(), nn.Linear(20, 10)),
    )


def loss(model: nn.Module, rank: int, step: int) -> Tensor:
    """Return the loss on the batch of this rank and step."""
    generator = torch.Generator().manual_seed(100 * step + rank)
    x_BCHW = torch.randn(6, 1, 8, 8, generator=generator).to(next(model.parameters()).dtype)
    return F.cross_entropy(model(x_BCHW), torch.randint(10, (6,), generator=generator))


def once(model: nn.Module, rank: int, step: int) -> None:
    """Run one forward and one backward pass."""
    loss(model, rank, step).backward()


class Script:
    """A training script with a reducer mounted."""

    mount: Any

    def __init__(self, model: nn.Module, rank: int, backward: Backward) -> None:
        self.model, self.rank, self.backward = model, rank, backward
        self.optimizer = torch.optim.SGD(
            [p for p in model.parameters() if p.requires_grad], 0.1, momentum=0.9
        )

    def gradients(self, step: int) -> None:
        """Run the part of a step before the optimiser."""
        raise NotImplementedError

    def train(self, steps: Iterable[int] = range(4), *, close: bool = True) -> list[Tensor]:
        """Train for these steps and return the model's parameters."""
        for step in steps:
            self.mount.begin_step(lr=0.1 / (1 + step))  # only a memory with lr_ratio uses it
            self.gradients(step)
            self.optimizer.step()
        if close:
            self.mount.close()
        return [p.detach().clone() for p in self.model.parameters()]


class Plain(Script):
    """A custom training loop with `sage.reduce_model`."""

    mount: ModelMount

    def __init__(
        self, model: nn.Module, rank: int, reducer: Any, *, backward: Backward = once, **options: Any
    ) -> None:
        super().__init__(model, rank, backward)
        self.mount = sage.reduce_model(model, reducer, **options)

    def gradients(self, step: int) -> None:
        self.mount.zero_grad()
        self.backward(self.model, self.rank, step)
        self.mount.reduce()


class Wrapped(Script):
    """A DDP script, with `sage.ddp_hook`."""

    mount: DdpMount

    def __init__(
        self,
        model: nn.Module,
        rank: int,
        reducer: Any,
        *,
        backward: Backward = once,
        ddp: dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(model, rank, backward)
        self.ddp = DistributedDataParallel(model, **(ddp or {}))
        self.mount = sage.ddp_hook(self.ddp, reducer, **options)

    def gradients(self, step: int) -> None:
        self.optimizer.zero_grad()
        self.backward(self.ddp, self.rank, step)


class Refuses(Exact):
    """Fails on the last rank at its second reduction."""

    calls = 0

    def forward(self, grad_N: Tensor, residual_N: Tensor | None, wire: Wire) -> Reduced:
        self.calls += 1
        if wire.rank == wire.world_size - 1 and self.calls == 2:
            raise ArithmeticError("no such gradient")
        return super().forward(grad_N, residual_N, wire)


def same(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    """Return whether two trainings have bitwise identical parameters."""
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
