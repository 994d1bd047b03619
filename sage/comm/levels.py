"""The two levels of a cluster: the ranks of one node, and the ranks of all nodes that have the same part.

Every node has R ranks, numbered from 0 by rank. A vector is reduced in three phases:

1. within each node, the ranks exchange pieces of the vector, and rank p of the node adds piece p of all R;
2. rank p of each node communicates with rank p of every other node about piece p;
3. within each node, the pieces are gathered.
"""
# N = elements of a vector, R = ranks of a node

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sage.comm.agreement import format_ranks
from sage.comm.pieces import gather_pieces, scatter_sum
from sage.comm.process import GroupWire
from sage.comm.subgroup import subgroups
from sage.comm.threads import ThreadWire
from sage.comm.wire import Wire
from sage.output.text import clean_text

KIND = "node"
"""The kind of the gradient's bytes within a node in the ledger."""

MOST_NAMED = 6
"""Maximum number of nodes that an error names."""


@dataclass(frozen=True, eq=False)
class Levels:
    """The wires of one rank on the two levels; `levels` creates them."""

    within: Wire
    """Between the R ranks of this node."""
    across: Wire
    """Between the ranks of all nodes that have the same number within their node."""

    def scatter_mean(self, x_N: Tensor, lengths: Sequence[int]) -> Tensor:
        """Return this rank's piece of the mean over the node of x_N, which is cut into these lengths.

        The result is overwritten by the next such call.
        """
        return scatter_sum(self.within, x_N, lengths, KIND).div_(self.within.world_size)

    def gather(self, x_N: Tensor, lengths: Sequence[int]) -> None:
        """Complete x_N, in which each rank of the node has set its piece, in place."""
        gather_pieces(self.within, x_N, lengths, KIND)

    def total(self, value: float, device: torch.device) -> float:
        """Return the sum of a number over the ranks of the node (8 bytes, `control`)."""
        x_1 = torch.tensor([value], dtype=torch.float64, device=device)
        return float(self.within.sum(x_1, kind="control"))

    def close(self) -> None:
        """Release the wires, without waiting for the other ranks."""
        self.within.close()
        self.across.close()


def by_host(hosts: Sequence[str]) -> list[list[int]]:
    """Return the ranks of each node, by the host name of each rank.

    Raises:
        ValueError: not all nodes have the same number of ranks; names those that differ from the others.

    >>> by_host(["a", "b", "a", "b"])
    [[0, 2], [1, 3]]
    """
    nodes: dict[str, list[int]] = {}
    for rank, host in enumerate(hosts):
        nodes.setdefault(host, []).append(rank)
    (usual, _), *others = Counter(map(len, nodes.values())).most_common()
    if others:
        odd = [(host, ranks) for host, ranks in nodes.items() if len(ranks) != usual]
        like_most = next((host, ranks) for host, ranks in nodes.items() if len(ranks) == usual)
        named = [
            f"{clean_text(host, 60)} has {len(ranks)} ({format_ranks(ranks)})"
            for host, ranks in (like_most, *odd[:MOST_NAMED])
        ]
        more = f" and {len(odd) - MOST_NAMED} other nodes differ too" if len(odd) > MOST_NAMED else ""
        raise ValueError(
            f"hierarchy is 'node', which needs as many ranks on each node, but {', '.join(named)}{more}: "
            "start as many ranks on each node, or use the hierarchy flat"
        )
    return list(nodes.values())


def levels(wire: Wire, nodes: Sequence[Sequence[int]], device: torch.device) -> Levels | None:
    """Create the wires of the two levels; return None if every node has one rank. A collective call.

    Args:
        wire: The wire of all ranks, whose ledger counts the bytes of both.
        nodes: The ranks of each node, ascending; the same number in each.
        device: Device of the vectors; determines the backend.
    """
    if len(nodes[0]) == 1:
        return None
    within = _between(wire, nodes, device)
    across = _between(wire, list(zip(*nodes, strict=True)), device)
    for part in (within, across):
        part.ledger, part.guard = wire.ledger, wire.guard
    within.is_in_node = True
    return Levels(within, across)


def _between(wire: Wire, groups: Sequence[Sequence[int]], device: torch.device) -> Wire:
    """Create a wire between the ranks of each group, and return that of this rank's."""
    own = next(ranks for ranks in groups if wire.rank in ranks)
    if isinstance(wire, ThreadWire):
        return wire.between(own)
    assert isinstance(wire, GroupWire)
    found = subgroups(wire, groups, device=device)
    assert found is not None
    return found
