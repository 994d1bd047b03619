"""The traffic ledger: counts the bytes of each collective, by kind and by the collective's algorithm.

There are two counts. *Payload* is the input of this rank's collectives, by kind (`values`, `indices`,
`sizes`, `padding`, `scales`, …). *Wire* is the number of bytes that the algorithm sends and receives on this
rank's link. The algorithms are Gloo's; NCCL's rings send the same total. `docs/explanation/ledger.md` has the
formulas, and compares them with the kernel's socket counters.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

KINDS = ("values", "indices", "scales", "sizes", "padding")
"""Kinds of a reducer's payload. Other kinds (`control`, `state`, `node`, …) are the engine's own traffic."""


@dataclass(frozen=True)
class Entry:
    """One collective, as `Ledger.recording` collects it."""

    op: str
    """The collective and, where it has one, its root, such as `gather` or `broadcast from 0`."""
    payload: int
    """Bytes that this rank contributes, of every kind."""
    seconds: float
    """Time in the collective, including the time spent waiting for other ranks."""


@dataclass
class Ledger:
    """One rank's payload and its traffic on the link, in bytes."""

    payload: Counter[str] = field(default_factory=Counter)
    """Payload bytes, by kind."""
    sent: int = 0
    """Bytes that the algorithms send from this rank."""
    received: int = 0
    """Bytes that this rank receives from the algorithms."""
    calls: Counter[str] = field(default_factory=Counter)
    """Number of collectives, by op."""
    seconds: float = 0.0
    """Time in collectives, including the time spent waiting for other ranks."""
    sent_in_node: int = 0
    """Of the bytes sent, those of collectives between the ranks of one node (`sage.comm.levels`)."""
    received_in_node: int = 0
    """Of the bytes received, the same."""
    _entries: list[Entry] | None = field(default=None, repr=False, compare=False)

    def add(
        self,
        op: str,
        parts: Mapping[str, int],
        traffic: tuple[int, int],
        seconds: float = 0.0,
        *,
        in_node: bool = False,
    ) -> None:
        """Add one collective: its payload by kind, and the (sent, received) bytes of its algorithm."""
        for kind, size in parts.items():
            self.payload[kind] += size
        self.sent += traffic[0]
        self.received += traffic[1]
        if in_node:
            self.sent_in_node += traffic[0]
            self.received_in_node += traffic[1]
        self.calls[op] += 1
        self.seconds += seconds
        if self._entries is not None:
            self._entries.append(Entry(op, sum(parts.values()), seconds))

    @contextmanager
    def recording(self) -> Iterator[list[Entry]]:
        """Collect each collective that is added within the block, in order; blocks do not nest."""
        entries = self._entries = []
        try:
            yield entries
        finally:
            self._entries = None

    def copy(self) -> "Ledger":
        """Return a snapshot, for `since`."""
        return replace(self, payload=Counter(self.payload), calls=Counter(self.calls), _entries=None)

    def since(self, earlier: "Ledger") -> "Ledger":
        """Return the difference to the snapshot `earlier`."""
        return Ledger(
            Counter({k: v - earlier.payload[k] for k, v in self.payload.items() if v != earlier.payload[k]}),
            self.sent - earlier.sent,
            self.received - earlier.received,
            Counter({k: v - earlier.calls[k] for k, v in self.calls.items() if v != earlier.calls[k]}),
            self.seconds - earlier.seconds,
            self.sent_in_node - earlier.sent_in_node,
            self.received_in_node - earlier.received_in_node,
        )


# Traffic of one rank, (sent, received) bytes. S = bytes of the buffer, W = world size.


def ring_all_reduce(size: int, world_size: int) -> tuple[int, int]:
    """Return the traffic of a ring all-reduce: 2·(W−1)/W·S each way (Patarasuk & Yuan, 2009).

    The vector is split into W chunks. In each of the two rounds a rank sends W−1 chunks and receives W−1
    chunks. If W does not divide the size, the traffic of the ranks differs by the rounding of a chunk; this
    function returns the mean.
    """
    each_way = 2 * (world_size - 1) * size // world_size
    return each_way, each_way


def ring_all_gather(size: int, world_size: int) -> tuple[int, int]:
    """Return the traffic of a ring all-gather of S bytes per rank: (W−1)·S each way, W−1 hops per block."""
    each_way = (world_size - 1) * size
    return each_way, each_way


def ring_ragged_gather(sizes: Sequence[int], rank: int) -> tuple[int, int]:
    """Return one rank's traffic of a ring all-gather to which each rank contributes its own number of bytes.

    A rank sends all blocks except that of the next rank, and receives all except its own.
    """
    return sum(sizes) - sizes[(rank + 1) % len(sizes)], sum(sizes) - sizes[rank]


def direct_exchange(size: int, world_size: int) -> tuple[int, int]:
    """Return the traffic of an all-to-all, and of the reduce-scatter built on it: (W−1)/W·S each way.

    A rank sends each block once, except its own.
    """
    each_way = size - size // world_size
    return each_way, each_way


def tree_broadcast(size: int, rank: int, root: int, world_size: int) -> tuple[int, int]:
    """Return one rank's traffic of a binomial-tree broadcast.

    The root sends ⌈log2 W⌉ times and a leaf never; every rank except the root receives once.
    """
    virtual = (rank - root) % world_size
    children = 0
    bit = 1
    while bit < world_size:
        # A rank that already has the data (virtual < bit) sends it to the rank virtual + bit.
        if virtual < bit and virtual + bit < world_size:
            children += 1
        bit *= 2
    return children * size, 0 if virtual == 0 else size


def star_gather(size: int, rank: int, root: int, world_size: int) -> tuple[int, int]:
    """Return one rank's traffic of a direct gather of S bytes per rank.

    The root receives (W−1)·S bytes; each other rank sends S bytes.
    """
    return (0, (world_size - 1) * size) if rank == root else (size, 0)
