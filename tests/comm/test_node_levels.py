"""Tests of the wires of two levels: which ranks share a node, what each wire sums, and failures."""

import os
import signal
from collections.abc import Callable
from itertools import chain

import pytest
import torch
from gloo import Group, RankEnded, processes
from torch import Tensor

from sage.comm.levels import Levels, by_host, levels
from sage.comm.pieces import scatter_sum
from sage.comm.rendezvous import local_places
from sage.comm.threads import simulate
from sage.comm.transport import ScheduleError, WireError
from sage.comm.wire import Wire
from sage.config import neighbours

CPU = torch.device("cpu")


def made(wire: Wire, nodes: list[list[int]]) -> Levels:
    found = levels(wire, nodes, CPU)
    assert found is not None
    return found


Exchanged = tuple[Tensor, Tensor, tuple[int, int]]


def exchanged(wire: Wire, nodes: list[list[int]]) -> Exchanged:
    """Two phases on a vector of ten integers, which differ between ranks; the part, the whole, the bytes."""
    both = made(wire, nodes)
    x_10 = torch.arange(10.0) + 16 * wire.rank
    lengths = [7, 3]
    part = both.scatter_mean(x_10, lengths).clone()
    both.across.sum(part)
    x_10.zero_()
    x_10.split(lengths)[both.within.rank].copy_(part)
    both.gather(x_10, lengths)
    return part, x_10, (wire.ledger.sent_in_node, wire.ledger.received_in_node)


@pytest.mark.parametrize("run", [simulate, processes])
@pytest.mark.parametrize("nodes", [[[0, 1], [2, 3]], [[0, 2], [1, 3]]], ids=["by node", "cyclic"])
def test_each_rank_has_its_piece_of_the_sum_over_nodes_of_their_means(
    run: Callable[[int, Callable[[Wire], Exchanged]], list[Exchanged]], nodes: list[list[int]]
) -> None:
    expected = 2 * torch.arange(10.0) + 16 * 3  # the means are over two ranks, the sum over two nodes
    for rank, (part, whole, sent) in enumerate(run(4, lambda wire: exchanged(wire, nodes))):
        number = next(node for node in nodes if rank in node).index(rank)
        assert torch.equal(part, expected.split([7, 3])[number])
        assert torch.equal(whole, expected)
        own, other = (28, 12) if number == 0 else (12, 28)
        # Reduce-scatter: all but its own piece sent, its own piece received. Gather: the opposite.
        assert sent == (other + own, own + other)


def test_sixteen_bit_gradients_are_added_in_float32_within_a_node() -> None:
    def work(wire: Wire) -> Tensor:
        x_2 = torch.tensor([1.0, 2.0**-8]).bfloat16() if wire.rank else torch.tensor([256.0, 1]).bfloat16()
        return scatter_sum(wire, torch.cat([x_2, x_2]), [2, 2, 0]).clone()

    first, second, third = simulate(3, work)  # 256 + 1 + 1, of which bfloat16 would lose each 1
    assert first.tolist() == second.tolist() == [258.0, 1.0078125]
    assert third.numel() == 0


def test_a_node_is_a_host_wherever_its_ranks_are() -> None:
    assert by_host(["a"] * 3) == [[0, 1, 2]]
    assert by_host(["b", "a", "b", "a"]) == [[0, 2], [1, 3]]
    assert by_host(["c", "a", "b"]) == [[0], [1], [2]]


def test_nodes_with_different_numbers_of_ranks_are_refused_by_name() -> None:
    with pytest.raises(
        ValueError, match=r"node1 has 2 \(ranks 0, 1\), node2 has 1 \(rank 2\): start"
    ) as raised:
        by_host(["node1", "node1", "node2"])
    assert "\n" not in str(raised.value)
    hosts = list(chain(["first", "second"] * 30, [f"n{i}" for i in range(3, 20)]))
    with pytest.raises(ValueError, match=r"first has 30 .*, second has 30 .*: start|n3 has 1 .* other nodes"):
        by_host(hosts)


def test_numbers_of_ranks_that_nodes_cannot_have_are_refused() -> None:
    assert neighbours(6, 3) == [[0, 1, 2], [3, 4, 5]]
    with pytest.raises(ValueError, match="ranks_per_node is 4, but 6 ranks .* allowed are 1, 2, 3, 6$"):
        neighbours(6, 4)


def test_nodes_of_one_rank_need_no_wires() -> None:
    assert simulate(3, lambda wire: levels(wire, [[0], [1], [2]], CPU)) == [None] * 3


def test_ranks_of_one_node_may_make_more_calls_than_those_of_another() -> None:
    def work(wire: Wire) -> list[float]:
        both = made(wire, [[0, 1], [2, 3]])
        count = 5 if wire.rank < 2 else 1
        found = [float(both.within.sum(torch.ones(1) * (1 + wire.rank))) for _ in range(count)]
        return [*found, float(both.across.sum(torch.ones(1)))]

    assert simulate(4, work) == [[3.0] * 5 + [2.0]] * 2 + [[7.0, 2.0]] * 2


def test_a_thread_that_waits_for_one_that_has_ended_raises_an_error() -> None:
    def work(wire: Wire) -> None:
        both = made(wire, [[0, 1], [2, 3]])
        both.within.sum(torch.ones(1))
        if wire.rank != 2:
            both.across.sum(torch.ones(1))

    with pytest.raises(
        WireError, match="rank 0 waits in sum.* for ranks that have ended: .*rank 2 has ended"
    ):
        simulate(4, work)


def test_threads_that_wait_for_each_other_on_different_levels_raise_an_error() -> None:
    def work(wire: Wire) -> None:
        both = made(wire, [[0, 1], [2, 3]])
        (both.within if wire.rank in (0, 3) else both.across).sum(torch.ones(1))

    with pytest.raises(WireError, match="waits in sum.* for ranks that wait in other collectives"):
        simulate(4, work)


def test_the_guard_compares_the_calls_of_each_level() -> None:
    def work(wire: Wire) -> None:
        made(wire, [[0, 1], [2, 3]]).within.sum(torch.ones(1 + wire.rank % 2))

    with pytest.raises(ScheduleError, match="rank 0 calls sum.*1.*; rank 1 calls sum.*2"):
        simulate(4, work, guard=True)


def test_a_rank_that_is_lost_is_named_by_those_of_its_node_and_of_its_part() -> None:
    def work(wire: Wire) -> None:
        both = made(wire, [[0, 1], [2, 3]])
        wire.sum(torch.ones(1))
        if wire.rank == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        (both.within if wire.rank == 2 else both.across).sum(torch.ones(1))
        if wire.rank == 0:
            both.within.sum(torch.ones(1))

    with Group(local_places(4), work, timeout=20) as group:
        outcomes = dict(group.outcomes())
    assert isinstance(outcomes[3], RankEnded)
    assert "between ranks 2, 3 failed" in str(outcomes[2])
    assert "between ranks 1, 3 failed" in str(outcomes[1])
    for rank in (1, 2):
        assert "rank 3 does not respond" in str(outcomes[rank])
