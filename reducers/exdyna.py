"""ExDyna: as MiCRO, in parts whose borders move to balance the load (Yoon & Oh, CCGrid 2024)."""
# N = elements of the flat vector, W = world size, B = blocks

from typing import Literal

import torch
from torch import Tensor

from sage.reduction import Layout, Wire

from .micro import Micro

OVER, UNDER = 1.05, 0.952
"""A part whose load is between these times the mean is neither over- nor underloaded."""


class ExDyna(Micro):
    """The vector is cut into blocks, and the sequence of blocks into W parts; λ moves as in MiCRO.

    Parts begin with equal numbers of blocks. After each step, between any two neighbours of which one had
    more than 1.05 times the mean of all parts' selections, or less than 0.952 times, one block moves from the
    one that had more to the one that had less. No part is left with less than a quarter of an equal share, or
    with none. A block is a multiple of 32 elements, or, in a vector too short for that, as long as gives that
    many blocks, at least one element; what remains after the last block belongs to the last part.

    The blocks, the limits 1.05 and 0.952 and the least share are the paper's. Two points of the move are
    ours: the authors move a block only where one neighbour is over and the other under the limits, and they
    update both loads before they look at the next pair; here one of the two is enough, and all pairs are
    compared by the loads of the step. What `micro` says of λ and of the released code holds here too.

    Args:
        threshold: λ_0, above 0; by default 1/(2·sqrt(k)).
        blocks: Blocks of the vector, 1 or more; no more than it has elements.
    """

    owner_B: Tensor
    ranks: Tensor

    def __init__(
        self,
        *,
        density: float = 0.01,
        threshold: float | None = None,
        blocks: int = 1024,
        values: Literal["fp32", "fp16"] = "fp32",
    ) -> None:
        super().__init__(density=density, threshold=threshold, values=values)
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
        if int(self.ranks) != world_size:  # at first, and where a run goes on with more ranks or fewer
            self.ranks.fill_(world_size)
            self._assign(
                [(p + 1) * blocks // world_size - p * blocks // world_size for p in range(world_size)]
            )
        part, shares = (int(self.step) + wire.rank) % world_size, self.shares()
        stop = n if part == world_size - 1 else sum(shares[: part + 1]) * self._size
        return sum(shares[:part]) * self._size, stop

    def shares(self) -> list[int]:
        """Blocks of each of the W parts."""
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
    """The parts' numbers of blocks, after one block has moved between unequally loaded neighbours.

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
