"""Tests of the ledger against bytes computed by hand and against the kernel's socket counters.

Run as a script, it prints the comparison with the counters, which is a table of docs/explanation/ledger.md.
"""
# W = world size

import math
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

import pytest
import torch
from gloo import Group
from sockets import tcp_bytes

from sage.comm.ledger import Entry, Ledger, tree_broadcast
from sage.comm.packing import divide
from sage.comm.pieces import gather_pieces, scatter_sum
from sage.comm.rendezvous import local_places
from sage.comm.threads import simulate
from sage.comm.transport import GUARD_BYTES
from sage.comm.wire import LARGE, Wire

# By hand.


def ledgers_of(world_size: int, work: Callable[[Wire], Any], *, guard: bool = False) -> list[Ledger]:
    def run(wire: Wire) -> Ledger:
        work(wire)
        return wire.ledger

    return simulate(world_size, run, guard=guard)


def uneven(wire: Wire) -> None:
    """1, 2, 3 … values of 2 bytes and as many indices of 4."""
    n = 1 + wire.rank
    wire.gather_uneven(values=torch.ones(n).half(), indices=torch.arange(n).int())


def lengths_of(wire: Wire) -> list[int]:
    return [4, 3, 2] if wire.world_size == 3 else [9]


BY_HAND: dict[str, tuple[Callable[[Wire], Any], Callable[[int], tuple[dict[str, int], int, int]]]] = {
    # the call, and for a rank of three: payload by kind, bytes sent, bytes received
    "sum": (
        lambda wire: wire.sum(torch.ones(9)),
        lambda rank: ({"values": 36}, 48, 48),
    ),
    "mean of another kind and dtype": (
        lambda wire: wire.mean(torch.ones(9).half(), kind="dense"),
        lambda rank: ({"dense": 18}, 24, 24),
    ),
    "sum_halves": (
        lambda wire: wire.sum_halves(torch.ones(9).half()),
        lambda rank: ({"values": 18}, 24, 24),
    ),
    "gather": (
        lambda wire: wire.gather(values=torch.ones(5).half(), indices=torch.ones(5).int()),
        lambda rank: ({"values": 10, "indices": 20}, 60, 60),
    ),
    "gather_rows": (
        lambda wire: wire.gather_rows(
            {"values": 5, "indices": 6}, values=torch.ones(4).half(), indices=torch.ones(6).int()
        ),
        lambda rank: ({"values": 10, "indices": 24}, 68, 68),
    ),
    "gather_rows in place": (
        lambda wire: wire.gather_rows(values=torch.ones(2**14)),
        lambda rank: ({"values": 2**16}, 2**17, 2**17),
    ),
    "gather_uneven": (
        uneven,
        lambda rank: (
            {"sizes": 8, "values": 2 + 2 * rank, "indices": 4 + 4 * rank, "padding": 6 * (2 - rank)},
            16 + 36,
            16 + 36,
        ),
    ),
    "gather_ragged": (
        lambda wire: wire.gather_ragged(
            values=torch.ones(1 + wire.rank).half(), indices=torch.ones(1 + wire.rank).int()
        ),
        # Of 6, 12 and 18 bytes a rank sends all but those of the next rank, and receives all but its own.
        lambda rank: (
            {"sizes": 8, "values": 2 + 2 * rank, "indices": 4 + 4 * rank},
            16 + 36 - (6 + 6 * ((rank + 1) % 3)),
            16 + 36 - (6 + 6 * rank),
        ),
    ),
    "gather_within": (
        lambda wire: wire.gather_within(
            4, values=torch.ones(1 + wire.rank).half(), indices=torch.ones(1 + wire.rank).int()
        ),
        lambda rank: (
            {"sizes": 8, "values": 2 + 2 * rank, "indices": 4 + 4 * rank, "padding": 6 * (3 - rank)},
            2 * (8 + 24),
            2 * (8 + 24),
        ),
    ),
    "broadcast": (
        lambda wire: wire.broadcast(torch.ones(5), root=min(1, wire.world_size - 1)),
        lambda rank: ({"values": 20}, 40, 0) if rank == 1 else ({}, 0, 20),
    ),
    "gather_to": (
        lambda wire: wire.gather_to(torch.ones(5), root=min(1, wire.world_size - 1)),
        lambda rank: ({}, 0, 40) if rank == 1 else ({"values": 20}, 20, 0),
    ),
    "reduce_scatter": (
        lambda wire: wire.reduce_scatter(torch.ones(wire.world_size, 4).double()),
        lambda rank: ({"values": 96}, 64, 64),
    ),
    # Pieces of 4, 3 and 2 elements; with one rank the whole.
    "scatter_sum": (
        lambda wire: scatter_sum(wire, torch.ones(9).half(), lengths_of(wire)),
        lambda rank: ({"values": 18}, 18 - 2 * (4 - rank), 2 * 2 * (4 - rank)),
    ),
    "gather_pieces": (
        lambda wire: gather_pieces(wire, torch.ones(9).half(), lengths_of(wire)),
        lambda rank: ({"values": 2 * (4 - rank)}, 18 - 2 * (4 - (rank + 1) % 3), 18 - 2 * (4 - rank)),
    ),
    "all_to_all": (
        lambda wire: wire.all_to_all(torch.ones(wire.world_size, 4).byte(), kind="codes"),
        lambda rank: ({"codes": 12}, 8, 8),
    ),
    "all_to_all_packed": (
        lambda wire: wire.all_to_all_packed(
            codes=torch.ones(wire.world_size, 5).byte(), scales=torch.ones(wire.world_size, 2)
        ),
        lambda rank: ({"codes": 15, "scales": 24}, 26, 26),
    ),
    "all_to_all_others": (
        lambda wire: wire.all_to_all_others(
            [torch.ones(4)] * (wire.world_size - 1) + [torch.ones(2)],
            [4] * (wire.world_size - 1) + [2],
            "codes",
        ),
        lambda rank: ({"codes": 48}, 32, 32),  # each counts as the longest
    ),
    "begin_sum": (
        lambda wire: wire.begin_sum(torch.ones(3)).wait(),
        lambda rank: ({"control": 12}, 16, 16),
    ),
    "texts": (
        lambda wire: wire.texts("abc"),
        lambda rank: ({"sizes": 8, "state": 4}, 16 + 8, 16 + 8),
    ),
}


@pytest.mark.parametrize("op", BY_HAND)
def test_every_op_counts_the_bytes_computed_by_hand(op: str) -> None:
    work, by_hand = BY_HAND[op]
    for rank, ledger in enumerate(ledgers_of(3, work)):
        payload = {kind: size for kind, size in ledger.payload.items() if size}
        expected, sent, received = by_hand(rank)
        assert payload == {kind: size for kind, size in expected.items() if size}
        assert (ledger.sent, ledger.received) == (sent, received)


@pytest.mark.parametrize("op", BY_HAND)
def test_a_single_rank_sends_and_receives_nothing(op: str) -> None:
    (ledger,) = ledgers_of(1, BY_HAND[op][0])
    assert (ledger.sent, ledger.received) == (0, 0)


def test_the_guards_messages_are_counted_separately() -> None:
    for ledger in ledgers_of(3, lambda wire: wire.sum(torch.ones(9)), guard=True):
        assert ledger.payload == {"values": 36, "guard": GUARD_BYTES}
        assert ledger.sent == ledger.received == 48 + 2 * GUARD_BYTES
        assert ledger.calls == {"sum": 1, "guard": 1}


def test_a_snapshot_does_not_change_and_since_returns_the_difference_to_it() -> None:
    ledger = Ledger()
    ledger.add("sum", {"values": 40, "scales": 4}, (80, 70), 0.5)
    before = ledger.copy()
    ledger.add("sum", {"values": 8}, (16, 15), 0.25)
    ledger.add("gather", {"indices": 2, "padding": 0}, (4, 3), 1.0, in_node=True)
    assert before == Ledger(Counter(values=40, scales=4), 80, 70, Counter(sum=1), 0.5)
    assert ledger.since(before) == Ledger(
        Counter(values=8, indices=2), 20, 18, Counter(sum=1, gather=1), 1.25, 4, 3
    )
    assert ledger.since(ledger.copy()) == Ledger()
    assert ledger.since(Ledger()) == ledger


def test_collectives_are_listed_while_they_are_recorded() -> None:
    ledger = Ledger()
    ledger.add("sum", {"values": 1}, (0, 0))
    with ledger.recording() as entries:
        ledger.add("gather", {"values": 8, "indices": 4}, (12, 12), 0.5)
        ledger.add("broadcast from 1", {"values": 0}, (0, 8), 0.25)
    ledger.add("sum", {"values": 1}, (0, 0))
    assert entries == [Entry("gather", 12, 0.5), Entry("broadcast from 1", 0, 0.25)]


@pytest.mark.parametrize("world_size", range(1, 18))
def test_a_broadcast_reaches_every_rank_once(world_size: int) -> None:
    for root in range(world_size):
        traffic = [tree_broadcast(100, rank, root, world_size) for rank in range(world_size)]
        assert sum(sent for sent, _ in traffic) == 100 * (world_size - 1)
        assert [received for _, received in traffic] == [100 * (rank != root) for rank in range(world_size)]
        assert traffic[root][0] == 100 * math.ceil(math.log2(world_size))


# By the kernel's counters.


@dataclass(frozen=True)
class Comparison:
    """One op on all ranks by the ledger and by the sockets: (sent, received) by rank."""

    op: str
    bytes: int
    """Bytes of one rank's buffer."""
    by_ledger: list[tuple[int, int]]
    counted: list[tuple[int, int]]
    num_messages: int
    """Messages of all ranks together, as Gloo splits the buffer."""

    @property
    def sent(self) -> tuple[int, int]:
        """Bytes that all ranks sent: by the ledger, and by the counters."""
        return sum(sent for sent, _ in self.by_ledger), sum(sent for sent, _ in self.counted)


def ring_segments(size: int, world_size: int) -> int:
    """Messages that Gloo's ring all-reduce makes of one rank's chunk: at least two, of at most a MiB."""
    return max(2, math.ceil(math.ceil(size / 2**20) / world_size))


OPS: dict[str, tuple[Callable[[Wire, int], Any], Callable[[int, int], int]]] = {
    # the call on n float32, and the messages that W ranks need for so many bytes
    "sum": (
        lambda wire, n: wire.sum(torch.ones(n)),
        lambda size, w: w * 2 * (w - 1) * ring_segments(size, w),
    ),
    "sum_halves": (
        lambda wire, n: wire.sum_halves(torch.ones(2 * n).half()),
        lambda size, w: 2 * w * (w - 1) * (ring_segments(size, w) if w == 2 else 1),
    ),
    "begin_sum": (
        lambda wire, n: wire.begin_sum(torch.ones(n)).wait(),
        lambda size, w: w * 2 * (w - 1) * ring_segments(size, w),
    ),
    "gather": (
        lambda wire, n: wire.gather(values=torch.ones(n)),
        lambda size, w: w * 2 * (w - 1),
    ),
    "gather_rows": (
        lambda wire, n: wire.gather_rows(values=torch.ones(n)),
        lambda size, w: w * 2 * (w - 1) if size < LARGE else w * (w - 1),
    ),
    "broadcast": (
        lambda wire, n: wire.broadcast(torch.ones(n), root=wire.world_size - 1),
        lambda size, w: w - 1,
    ),
    "gather_to": (
        lambda wire, n: wire.gather_to(torch.ones(n), root=wire.world_size - 1),
        lambda size, w: w - 1,
    ),
    "reduce_scatter": (
        lambda wire, n: wire.reduce_scatter(torch.ones(wire.world_size, n // wire.world_size)),
        lambda size, w: w * (w - 1),
    ),
    "scatter_sum": (
        lambda wire, n: scatter_sum(wire, torch.ones(n), divide(n, wire.world_size)),
        lambda size, w: w * (w - 1),
    ),
    "gather_pieces": (
        lambda wire, n: gather_pieces(wire, torch.ones(n), divide(n, wire.world_size)),
        lambda size, w: w * (w - 1),
    ),
    "all_to_all": (
        lambda wire, n: wire.all_to_all(torch.ones(wire.world_size, n // wire.world_size)),
        lambda size, w: w * (w - 1),
    ),
    "all_to_all_others": (
        lambda wire, n: wire.all_to_all_others(
            [torch.ones(n // wire.world_size)] * wire.world_size,
            [n // wire.world_size] * wire.world_size,
            "values",
        ),
        lambda size, w: w * (w - 1),
    ),
}
SIZES = [1_000, 2**18, 1_000_001]
"""Numbers of elements: 4 kB, 1 MiB, and 4 MB that no world size here divides."""
PER_MESSAGE = 3 * 48
"""Bytes that Gloo adds to a message: three headers of 48 bytes."""


def compare(world_size: int) -> list[Comparison]:
    """Run every op at every size on W gloo processes, which read their own sockets before and after."""
    places = local_places(world_size)
    meeting = get_context("fork").Barrier(world_size, timeout=60)  # without traffic

    def read() -> tuple[int, int]:
        meeting.wait()  # all earlier data has been sent
        counted = tcp_bytes(leaving_out=places[0].port)
        meeting.wait()  # no later data has been sent
        return counted

    def work(wire: Wire) -> list[tuple[tuple[int, int], tuple[int, int]]]:
        rows = []
        for call, _ in OPS.values():
            for n in SIZES:
                before, counted = wire.ledger.copy(), read()
                call(wire, n)
                by_ledger, (sent, received) = wire.ledger.since(before), read()
                rows.append(
                    ((by_ledger.sent, by_ledger.received), (sent - counted[0], received - counted[1]))
                )
        return rows

    by_rank: dict[int, list[tuple[tuple[int, int], tuple[int, int]]]] = {}
    with Group(places, work) as group:
        for rank, outcome in group.outcomes():
            if isinstance(outcome, BaseException):
                raise outcome
            by_rank[rank] = outcome
    comparisons = []
    rows = zip(*(by_rank[rank] for rank in range(world_size)), strict=True)
    for op, (_, num_messages) in OPS.items():
        for n in SIZES:
            by_ledger, counted = zip(*next(rows), strict=True)
            comparisons.append(
                Comparison(op, 4 * n, list(by_ledger), list(counted), num_messages(4 * n, world_size))
            )
    return comparisons


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's TCP_INFO")
@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_the_ledger_agrees_with_the_socket_counters(world_size: int) -> None:
    for row in compare(world_size):
        name = f"{row.op} of {row.bytes} bytes on {world_size} ranks"
        by_ledger, counted = row.sent
        assert counted == sum(received for _, received in row.counted), name
        # If a rank's share is not a whole number of bytes, each rank's ledger rounds it down.
        assert by_ledger <= counted < by_ledger + world_size + PER_MESSAGE * row.num_messages, name
        if row.bytes >= 2**20:
            assert counted <= 1.01 * by_ledger, name
            for result, saw in zip(row.by_ledger, row.counted, strict=True):
                assert saw == pytest.approx(result, rel=0.01, abs=PER_MESSAGE * row.num_messages), name


def main(world_sizes: tuple[int, ...] = (2, 3, 4)) -> None:
    """Print the bytes sent by all ranks as Markdown: by the ledger, and the excess by the sockets."""
    print("| op | payload (bytes) |" + "".join(f" W = {w} |" for w in world_sizes))
    print("|---|---:|" + "---:|" * len(world_sizes))
    for rows in zip(*(compare(world_size) for world_size in world_sizes), strict=True):
        cells = [f" {b:,} + {c - b:,} ({(c - b) / b:.3%}) |" for b, c in (row.sent for row in rows)]
        print(f"| `{rows[0].op}` | {rows[0].bytes:,} |" + "".join(cells))


if __name__ == "__main__":
    main()
