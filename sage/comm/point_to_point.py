"""Collectives on CPUs by direct messages of Gloo, for vectors so long that links limit them.

Here every rank announces a receive before it sends. Gloo's own all-gather and all-to-all begin with the send:
the announcement of a rank that is a little late then waits behind its own data, so that a link is used in one
direction after the other. Between two ranks on links of 100 Mbit/s, an all-to-all of 4 MiB per rank takes
331 ms so, and 168 ms in pairs; an all-gather takes 517 ms, and 351 ms along a ring. With four ranks, Gloo's
all-to-all, in which every rank sends to all others at once, takes one and a half times as long as in pairs.
A broadcast from each rank is no better: Gloo runs two of them at a time, and with four ranks they take twice
as long as a ring.
"""
# W = world size, S = elements of a piece

from collections.abc import Sequence

import torch.distributed as dist
from torch import Tensor

TAG = 7236
"""The tag of these messages: a script may send others between the same ranks, whose tag is 0 by default."""

ALONG_A_RING = 1 << 16
"""Bytes per rank from which a gather goes along a ring; shorter ones take the same time in Gloo's."""


def in_pairs(world_size: int) -> int:
    """Return the bytes per rank from which an all-to-all goes in pairs.

    256 KiB of four ranks take longer so than in Gloo's all-to-all on links of 1 Gbit/s.
    """
    return 1 << 18 if world_size == 2 else 1 << 20


def ring_gather(vectors: Sequence[Sequence[Tensor]], rank: int, group: dist.ProcessGroup | None) -> None:
    """Give every rank piece r of each vector from rank r, in place, along a ring.

    Args:
        vectors: For each vector its W pieces, contiguous; those of the other ranks are overwritten. A piece
            has the same size on all ranks, and may be empty.
        rank: This rank.
        group: The process group of the W ranks; None: the default group.

    Raises:
        RuntimeError: a message failed, or did not arrive within the group's timeout.
    """
    world_size = len(vectors[0])
    ahead, behind = (rank + 1) % world_size, (rank - 1) % world_size
    # By number of hops from their rank: this rank's own pieces, then those that arrive and are sent on.
    by_hops = [[pieces[(rank - hops) % world_size] for pieces in vectors] for hops in range(world_size)]
    arriving = [[_receive(x_S, behind, group) for x_S in pieces] for pieces in by_hops[1:]]
    leaving: list[dist.Work | None] = []
    for hops, pieces in enumerate(by_hops[:-1]):
        for i, x_S in enumerate(pieces):
            if hops > 0:
                _wait(arriving[hops - 1][i])
            leaving.append(_send(x_S, ahead, group))
    for work in (*leaving, *(arriving[-1] if arriving else ())):
        _wait(work)


def exchange_in_pairs(
    leaving: Sequence[Tensor], arriving: Sequence[Tensor], rank: int, group: dist.ProcessGroup | None
) -> None:
    """Send piece r to rank r, and receive its piece for this rank: an all-to-all in W − 1 rounds.

    In round i a rank sends to the i-th rank after it, and receives from the i-th before it.

    Args:
        leaving: W pieces, contiguous; they may be empty.
        arriving: Memory for W pieces, contiguous.
        rank: This rank.
        group: The process group of the W ranks; None: the default group.

    Raises:
        RuntimeError: a message failed, or did not arrive within the group's timeout.
    """
    world_size = len(leaving)
    arriving[rank].copy_(leaving[rank])
    for i in range(1, world_size):
        after, before = (rank + i) % world_size, (rank - i) % world_size
        received = _receive(arriving[before], before, group)
        _wait(_send(leaving[after], after, group))
        _wait(received)


def _send(x_S: Tensor, rank: int, group: dist.ProcessGroup | None) -> dist.Work | None:
    return dist.isend(x_S, group=group, tag=TAG, group_dst=rank) if x_S.numel() else None


def _receive(x_S: Tensor, rank: int, group: dist.ProcessGroup | None) -> dist.Work | None:
    return dist.irecv(x_S, group=group, tag=TAG, group_src=rank) if x_S.numel() else None


def _wait(work: dist.Work | None) -> None:
    if work is not None:
        work.wait()
