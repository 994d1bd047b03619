"""Which ranks share a node, and wires between the ranks of one node and between nodes."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from sage.comm.process import ProcessWire
from sage.comm.subgroup import subgroups
from sage.comm.wire import Wire
from sage.predict.calibration_schema import Scope
from sage.records.manifest import host


@dataclass(frozen=True)
class Scoped:
    """A wire whose ranks are all on one node (`intra`), or each on a node of its own (`inter`)."""

    scope: Scope
    wire: Wire

    @property
    def name(self) -> str:
        """The scope in words."""
        if self.scope == "intra":
            return f"{self.wire.world_size} ranks of one node"
        return f"{self.wire.world_size} nodes"


def nodes_of(wire: Wire) -> list[list[int]]:
    """Return the ranks of each node, ascending, in the order of their first ranks."""
    nodes: defaultdict[str, list[int]] = defaultdict(list)
    for rank, name in enumerate(wire.texts(host())):
        nodes[name].append(rank)
    return list(nodes.values())


def scopes_of(wire: ProcessWire, nodes: Sequence[Sequence[int]], device: torch.device) -> list[Scoped]:
    """Return the scopes to measure in which this rank takes part.

    If all ranks are on one node, or each on a node of its own, the only scope is that of all ranks. Otherwise
    one group has the first rank of each node, and each node with several ranks has a group of them.

    Args:
        wire: The wire of all ranks.
        nodes: The ranks of each node.
        device: Device of the vectors.
    """
    if len(nodes) == 1:
        return [Scoped("intra", wire)]
    if len(nodes) == wire.world_size:
        return [Scoped("inter", wire)]
    shared = [ranks for ranks in nodes if len(ranks) > 1]
    between = subgroups(wire, [sorted(ranks[0] for ranks in nodes)], device=device)
    within = subgroups(wire, shared, device=device)
    scopes = [] if between is None else [Scoped("inter", between)]
    return scopes if within is None else [*scopes, Scoped("intra", within)]
