"""Plain code of the 1-bit all-reduce, element by element; what the tests compare it with."""
# N = elements of the vector

from collections.abc import Sequence

import torch
from torch import Tensor

from sage.optim.one_bit import chunk_of

Ranks = list[list[Tensor]]
"""Of each step, a vector of each rank."""


def vectors(seed: int, steps: int, world_size: int, numel: int) -> Ranks:
    generator = torch.Generator().manual_seed(seed)
    return [[torch.randn(numel, generator=generator) for _ in range(world_size)] for _ in range(steps)]


def by_hand(steps: Ranks, sizes: Sequence[int], world_size: int) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Means of the steps, worker errors and server errors, by the formulas and element by element."""
    numel = sum(sizes)
    groups = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    chunks = torch.arange(numel) // chunk_of(numel, world_size)

    def coded(x_N: Tensor, parts: Tensor) -> Tensor:
        code_N = torch.zeros(numel)
        for part in parts.unique():
            here = parts == part
            scale = x_N[here].double().square().mean().sqrt().float()
            code_N[here] = torch.where(x_N[here] < 0, -scale, scale)
        return code_N

    workers, server_N = [torch.zeros(numel) for _ in range(world_size)], torch.zeros(numel)
    means = []
    for rows in steps:
        total_N = torch.zeros(numel)
        for worker_N, x_N in zip(workers, rows, strict=True):
            worker_N += x_N
            code_N = coded(worker_N, groups)
            worker_N -= code_N
            total_N += code_N
        server_N += total_N / world_size
        means.append(coded(server_N, groups * world_size + chunks))
        server_N -= means[-1]
    return means, workers, server_N
