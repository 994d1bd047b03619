"""A wire between some of the ranks of another wire, over a process group of their own."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
import torch.distributed as dist

from sage.comm.agreement import format_ranks
from sage.comm.process import GroupWire
from sage.comm.rendezvous import Place

T = TypeVar("T")


class SubgroupWire(GroupWire):
    """A wire between some ranks of `whole`, whose monitor names the rank that causes a failure.

    `subgroups` creates it.

    Args:
        whole: The wire of all ranks.
        ranks: The ranks of `whole` between which this wire communicates, ascending.
        group: Their process group.
        device: Device of the vectors.
    """

    def __init__(
        self, whole: GroupWire, ranks: Sequence[int], group: dist.ProcessGroup, *, device: torch.device
    ) -> None:
        place = Place(rank=ranks.index(whole.rank), world_size=len(ranks), hostip="", port=0)
        super().__init__(place, device=device, timeout=whole._timeout.total_seconds(), guard=False)
        self._whole, self._between = whole, f"between {format_ranks(ranks)}"
        self._group = self._control = group

    def _attempt(self, call: str, run: Callable[[], T]) -> T:
        return self._whole._attempt(f"{call} {self._between}", run)

    def close(self) -> None:
        """Release the process group, without waiting for the other ranks."""
        dist.destroy_process_group(self._group)


def subgroups(
    whole: GroupWire, groups: Sequence[Sequence[int]], *, device: torch.device
) -> SubgroupWire | None:
    """Create a process group for each group of ranks; return the wire of this rank's group, if it is in one.

    All ranks must call this with the same groups.

    Args:
        whole: The wire of all ranks.
        groups: Ranks of `whole`, ascending; no rank is in two groups.
        device: Device of the vectors; determines the backend.
    """
    wire = None
    host = whole.group or dist.group.WORLD
    assert host is not None
    members = dist.get_process_group_ranks(host)
    for ranks in groups:
        group = dist.new_group(
            [members[rank] for rank in ranks],
            timeout=whole._timeout,
            backend=whole._backend,
            # A script's ranks outside `whole` do not take part in the call.
            use_local_synchronization=len(members) < dist.get_world_size(),
        )
        if whole.rank in ranks:
            assert isinstance(group, dist.ProcessGroup)
            wire = SubgroupWire(whole, ranks, group, device=device)
    return wire
