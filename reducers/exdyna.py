"""ExDyna: like MiCRO, with partitions rebalanced every step (Yoon & Oh, CCGrid 2024)."""
# N = elements of the flat vector, W = world size, B = blocks

from typing import Annotated, Literal

import torch
from torch import Tensor

from sage.reduction import Layout, Start, Wire
from sage.validate import LATER, Before

from .micro import Micro

OVER, UNDER = 1.05, 0.952
"""Multiples of the mean load above and below which a part is over- or underloaded."""


class ExDyna(Micro):
    """The vector is divided into blocks and the sequence of blocks into W parts; λ is updated as in MiCRO.

    Initially all parts have the same number of blocks. After each step, neighbouring parts are compared by
    the number of elements selected in them. If one had more than 1.05 times the mean over all parts, or the
    other less than 0.952 times, one block moves from the part with the larger count to the other. Every part
    keeps at least a quarter of an equal share, and at least one block. The size of a block is a multiple of
    32 elements; if the vector is too short for that, it is chosen to give the requested number of blocks,
    with at least one element per block. Elements after the last block belong to the last part.

    The blocks, the limits 1.05 and 0.952 and the smallest share are the paper's. Two details of the move are
    ours. The authors move a block only if one neighbour is above and the other below the limits; here one of
    the two suffices. They update both loads before they compare the next pair; here all pairs are compared by
    the loads of the step. The remarks in `micro` on λ, its first value and the released code apply here too.

    Args:
        threshold: First λ, above 0; by default it follows from `start`.
        start: First λ: from the first gradient (`gradient`), or 1/(2·sqrt(k)) with the target number k of
            elements (`published`).
        blocks: Number of blocks in the vector, 1 or more; limited to its number of elements.

    Raises:
        ValueError: if an option is out of range.
    """

    serves = False  # a server's share has no partitions
    owner_B: Tensor
    ranks: Tensor

    def __init__(
        self,
        *,
        density: float = 0.01,
        threshold: float | None = None,
        start: Annotated[Start, Before("published")] = "gradient",
        blocks: int = 1024,
        values: Literal["fp32", "fp16"] = "fp32",
        mask: Annotated[Literal["signal", "momentum"], LATER] = "signal",
        mask_beta: Annotated[float, LATER] = 0.9,
    ) -> None:
        super().__init__(
            density=density, threshold=threshold, start=start, values=values, mask=mask, mask_beta=mask_beta
        )
        if blocks < 1:
            raise ValueError(f"blocks={blocks!r}: expected 1 block or more")
        self._wanted = blocks
        self.register_buffer("ranks", torch.zeros((), dtype=torch.int64))

    def bind(self, layout: Layout) -> None:
        super().bind(layout)
        size = max(1, layout.numel // self._wanted)
        self._size = size if size < 32 else size - size % 32
        blocks = min(self._wanted, layout.numel)
        self.register_buffer("owner_B", torch.zeros(blocks, dtype=torch.int32))

    def part(self, n: int, wire: Wire) -> tuple[int, int]:
        world_size, blocks = wire.world_size, self.owner_B.numel()
        if int(self.ranks) != world_size:  # at the first step, and after a resume with another world size
            self.ranks.fill_(world_size)
            self._assign(
                [(p + 1) * blocks // world_size - p * blocks // world_size for p in range(world_size)]
            )
        part, shares = (int(self.step) + wire.rank) % world_size, self.shares()
        stop = n if part == world_size - 1 else sum(shares[: part + 1]) * self._size
        return sum(shares[:part]) * self._size, stop

    def shares(self) -> list[int]:
        """Number of blocks in each of the W parts."""
        shares: list[int] = torch.bincount(self.owner_B, minlength=int(self.ranks)).tolist()
        return shares

    def learn(self, counts: list[int], mean_N: Tensor, wire: Wire) -> None:
        super().learn(counts, mean_N, wire)
        world_size, step = len(counts), int(self.step) - 1
        load = [counts[(part - step) % world_size] for part in range(world_size)]
        self._assign(balanced(self.shares(), load))

    def _assign(self, shares: list[int]) -> None:
        self.owner_B.copy_(torch.arange(len(shares)).repeat_interleave(torch.tensor(shares)))


def balanced(shares: list[int], load: list[int]) -> list[int]:
    """Number of blocks per part after one block has moved between each pair of unequally loaded neighbours.

    >>> balanced([8, 8, 8, 8], [40, 10, 10, 10])
    [7, 9, 8, 8]
    >>> balanced([8, 8, 8, 8], [10, 10, 10, 10])
    [8, 8, 8, 8]
    """
    shares = list(shares)
    mean = sum(load) / len(load)
    least = max(1, sum(shares) // (4 * len(shares)))
    for left, right in zip(range(len(load)), range(1, len(load)), strict=False):
        more, less = (left, right) if load[left] > load[right] else (right, left)
        uneven = load[more] > load[less] and (load[more] > OVER * mean or load[less] < UNDER * mean)
        if uneven and shares[more] > least:
            shares[more] -= 1
            shares[less] += 1
    return shares


REDUCER = ExDyna
