"""Draws random vectors of different kinds, compares vectors bitwise, and sets the number of threads."""

import math
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

SIZES = [0, 1, 63, 64, 65, 1000, 16_384, 16_385, 50_001, 200_003]

KINDS: list[Callable[[int], Tensor]] = [
    lambda n: torch.randn(n) * torch.randn(n).exp(),
    lambda n: torch.randint(-3, 4, (n,)).float(),
    lambda n: torch.full((n,), 1.5),
    lambda n: torch.randn(n) * 1e-41,
    lambda n: torch.randn(n).sort().values,
    lambda n: torch.where(torch.rand(n) < 0.02, torch.randn(n), torch.where(torch.rand(n) < 0.5, 0.0, -0.0)),
    lambda n: torch.where(torch.arange(n) < n // 100, 1e3, 1e-3) * torch.randn(n),
    lambda n: torch.tensor(random.choices([1.0, -2.0, math.nan, math.inf, -math.inf, 0.0, 1e-41], k=n)),
]
"""Heavy-tailed, with ties, constant, denormal, sorted, mostly zero, of two scales, not finite."""


def draw(n: int) -> Tensor:
    return random.choice(KINDS)(n).float()


def assert_same(left: Tensor, right: Tensor) -> None:
    """Assert that two vectors are bitwise identical; any NaN equals any NaN."""
    left, right = left.cpu(), right.cpu()
    assert (left.dtype, left.shape) == (right.dtype, right.shape)
    if left.is_floating_point():
        assert torch.equal(left.isnan(), right.isnan())
        left, right = (x.nan_to_num(0.0, math.inf, -math.inf).view(torch.int32) for x in (left, right))
    assert torch.equal(left, right)


def seeded(case: int) -> int:
    """Seed both generators and return the size of the case."""
    random.seed(case)
    torch.manual_seed(case)
    return SIZES[case % len(SIZES)]


@contextmanager
def team(threads: int) -> Iterator[None]:
    """Run with a number of threads, of which the kernels use two for 131,072 elements or more."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
