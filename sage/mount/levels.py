"""The communicators of a mount in a script of one's own: one between all ranks, or two levels of nodes."""

from collections.abc import Callable
from typing import Literal, TypeVar, get_args

import torch
import torch.distributed as dist

from sage.comm.attached import AttachedWire
from sage.comm.levels import Levels, by_host, levels
from sage.config import neighbours
from sage.mount.agreement import check_same
from sage.records.manifest import host

T = TypeVar("T")
Hierarchy = Literal["flat", "node"]


def attach(
    make: Callable[[Levels | None], T],
    group: dist.ProcessGroup | None,
    *,
    hierarchy: Hierarchy,
    ranks_per_node: int | None,
    device: torch.device,
    timeout: float,
    guard: bool,
) -> tuple[AttachedWire, T]:
    """Create the communicators and what is reduced over them; a collective call.

    Args:
        make: Creates it, over the wires of two levels if there are two.
        group: The ranks; None: all.
        hierarchy: Whether to reduce between all ranks, or within nodes and then between them.
        ranks_per_node: Number of neighbouring ranks that count as a node; None: those of one host do.
        device: Device of the gradients.
        timeout: Seconds after which an incomplete collective is an error.
        guard: Compare every collective between the ranks before it runs.

    Raises:
        ValueError: a setting is not allowed, the ranks have different ones, or not all nodes have the same
            number of ranks.
    """
    if hierarchy not in get_args(Hierarchy):
        raise ValueError(f"hierarchy is {hierarchy!r}; allowed is one of {', '.join(get_args(Hierarchy))}")
    if ranks_per_node is not None and (hierarchy == "flat" or ranks_per_node < 1):
        raise ValueError(
            f"ranks_per_node is {ranks_per_node} with the hierarchy {hierarchy}: give a number of at least 1 "
            "with hierarchy='node', or leave it out"
        )
    if hierarchy == "flat":
        made = make(None)
        return AttachedWire(group, device=device, timeout=timeout, guard=guard), made
    # Before any collective, if it can be known.
    nodes = None if ranks_per_node is None else neighbours(dist.get_world_size(group), ranks_per_node)
    wire = AttachedWire(group, device=device, timeout=timeout, guard=guard)
    check_same(wire, [f"the hierarchy node with ranks_per_node {ranks_per_node}"])
    return wire, make(levels(wire, nodes or by_host(wire.texts(host())), device))
