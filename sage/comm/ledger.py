"""The traffic ledger: every byte that crosses the wire, by kind, as the collective's algorithm sends it.

Two figures are kept apart. *Payload* is what a rank hands to its collectives, split by what the bytes mean
(`values`, `indices`, `sizes`, `padding`, `scales`, …). *Wire* is what the algorithm makes of them on this
rank's link. The algorithms are Gloo's, and NCCL's rings carry the same in sum: see
`docs/explanation/ledger.md` for the formulas and for how closely they agree with the kernel's own socket
counters.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

KINDS = ("values", "indices", "scales", "sizes", "padding")
"""What a reducer's payload is made of. Other kinds (`control`, `state`, …) are the engine's own traffic."""


@dataclass
class Ledger:
    """What one rank has handed to its collectives, and what they put on its link, in bytes."""

    payload: Counter[str] = field(default_factory=Counter)
    """Bytes handed over, by kind."""
    sent: int = 0
    """Bytes that the algorithms sent from this rank."""
    received: int = 0
    """Bytes that the algorithms brought to this rank."""
    calls: Counter[str] = field(default_factory=Counter)
    """How many collectives of each op."""
    seconds: float = 0.0
    """Time spent inside collectives, waiting for other ranks included."""

    def book(self, op: str, parts: Mapping[str, int], traffic: tuple[int, int], seconds: float = 0.0) -> None:
        """Enter one collective: its payload by kind, and the (sent, received) bytes of its algorithm."""
        for kind, size in parts.items():
            self.payload[kind] += size
        self.sent += traffic[0]
        self.received += traffic[1]
        self.calls[op] += 1
        self.seconds += seconds

    def copy(self) -> "Ledger":
        """A snapshot, to subtract from later."""
        return Ledger(Counter(self.payload), self.sent, self.received, Counter(self.calls), self.seconds)

    def since(self, earlier: "Ledger") -> "Ledger":
        """What was booked after the snapshot `earlier` was taken."""
        return Ledger(
            Counter({k: v - earlier.payload[k] for k, v in self.payload.items() if v != earlier.payload[k]}),
            self.sent - earlier.sent,
            self.received - earlier.received,
            Counter({k: v - earlier.calls[k] for k, v in self.calls.items() if v != earlier.calls[k]}),
            self.seconds - earlier.seconds,
        )


# Traffic of one rank, (sent, received) bytes. S = bytes of the buffer, W = world size.


def ring_all_reduce(size: int, world_size: int) -> tuple[int, int]:
    """Ring all-reduce: 2·(W−1)/W·S each way (Patarasuk & Yuan, 2009).

    The vector is cut into W chunks; in each of the two rounds a rank sends all of them but one and receives
    all of them but one. Where W does not divide the vector, ranks differ by a chunk's rounding; this is their
    mean.
    """
    each_way = 2 * (world_size - 1) * size // world_size
    return each_way, each_way


def ring_all_gather(size: int, world_size: int) -> tuple[int, int]:
    """Ring all-gather of S bytes from each rank: (W−1)·S each way, as every block travels W−1 hops."""
    each_way = (world_size - 1) * size
    return each_way, each_way


def direct_exchange(size: int, world_size: int) -> tuple[int, int]:
    """All-to-all and the reduce-scatter made of it: (W−1)/W·S each way, every block but one's own, once."""
    each_way = size - size // world_size
    return each_way, each_way


def tree_broadcast(size: int, rank: int, root: int, world_size: int) -> tuple[int, int]:
    """Binomial-tree broadcast: the root sends ⌈log2 W⌉ times, a leaf never; all but the root receive once."""
    virtual = (rank - root) % world_size
    children = 0
    bit = 1
    while bit < world_size:
        # A rank that already has the data (virtual < bit) passes it to the one `bit` further on.
        if virtual < bit and virtual + bit < world_size:
            children += 1
        bit *= 2
    return children * size, 0 if virtual == 0 else size


def star_gather(size: int, rank: int, root: int, world_size: int) -> tuple[int, int]:
    """Gather of S bytes from each rank to the root, straight: it receives (W−1)·S, and each other sends S."""
    return (0, (world_size - 1) * size) if rank == root else (size, 0)
