"""A ring all-gather of tensors on CPUs, in place, by direct messages of Gloo.

Gloo's own all-gather receives into new memory and copies. A broadcast from each rank copies nothing, but Gloo
runs two of them at a time, so that four ranks do not use their links in both directions all the time:
on links of 100 Mbit/s they take twice as long as a ring.
"""

from collections.abc import Sequence

import torch.distributed as dist
from torch import Tensor


def in_place(vectors: Sequence[Sequence[Tensor]], rank: int, group: dist.ProcessGroup | None) -> None:
    """Give every rank piece r of each vector from rank r; the pieces of the other ranks are overwritten.

    Args:
        vectors: For each vector its W pieces, contiguous. A piece has the same size on all ranks, and may
            be empty.
        rank: This rank.
        group: The process group of the W ranks; None: the default group.

    Raises:
        RuntimeError: a message failed, or did not arrive within the group's timeout.
    """
    world_size = len(vectors[0])
    ahead, behind = (rank + 1) % world_size, (rank - 1) % world_size
    # By number of hops from their rank: this rank's own pieces, then those that arrive and are sent on.
    by_hops = [[pieces[(rank - hops) % world_size] for pieces in vectors] for hops in range(world_size)]
    arriving = [
        [dist.irecv(x_S, group=group, group_src=behind) if x_S.numel() else None for x_S in pieces]
        for pieces in by_hops[1:]
    ]
    leaving: list[dist.Work | None] = []
    for hops, pieces in enumerate(by_hops[:-1]):
        for i, x_S in enumerate(pieces):
            if hops > 0:
                _wait(arriving[hops - 1][i])
            if x_S.numel():
                leaving.append(dist.isend(x_S, group=group, group_dst=ahead))
    for work in (*leaving, *(arriving[-1] if arriving else ())):
        _wait(work)


def _wait(work: dist.Work | None) -> None:
    if work is not None:
        work.wait()
