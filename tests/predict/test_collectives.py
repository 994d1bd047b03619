"""The closed forms of collectives: against the ledger, against SimGrid, and over several nodes."""

import json
import math
from pathlib import Path

import pytest

from sage.comm import ledger
from sage.predict.calibration_schema import Collective
from sage.predict.collectives import flat, hierarchical, ring, tree

SIMGRID = json.loads((Path(__file__).parent / "simgrid_ring.json").read_text())


@pytest.mark.parametrize("row", SIMGRID["rows"], ids=lambda row: f"{row['ranks']}, {row['slowest_link']}")
def test_the_ring_takes_the_time_that_simgrid_simulates(row: dict[str, float]) -> None:
    """A ring with one slow link takes the time of a ring of slow links."""
    terms = ring("all_reduce", int(row["ranks"]))
    bandwidth = row["slowest_link"] * SIMGRID["bytes_per_second"]
    seconds = terms.steps * SIMGRID["latency_seconds"] + terms.share * SIMGRID["bytes"] / bandwidth
    assert seconds == pytest.approx(row["seconds"], rel=1e-5)


@pytest.mark.parametrize("p", [2, 3, 4, 8])
def test_the_bytes_of_a_ring_are_those_that_the_ledger_counts(p: int) -> None:
    size = 1_000_000 * p
    assert ring("all_reduce", p).share * size == pytest.approx(ledger.ring_all_reduce(size, p)[0])
    assert ring("all_gather", p).share * size == ledger.ring_all_gather(size, p)[0]
    assert ring("all_to_all", p).share * size == pytest.approx(ledger.direct_exchange(size, p)[0])
    assert ring("reduce_scatter", p).share * size == pytest.approx(ledger.direct_exchange(size, p)[0])
    assert ring("broadcast", p).share * size == ledger.tree_broadcast(size, 0, 0, p)[0]
    ragged = ring("ragged_gather", p)
    assert ragged.share * size + ragged.fixed_bytes == ledger.ring_all_gather(8 + size, p)[0]


@pytest.mark.parametrize("collective", ["all_reduce", "all_gather", "ragged_gather", "reduce_scatter"])
def test_a_tree_has_fewer_steps_and_no_fewer_bytes(collective: Collective) -> None:
    for p in (4, 64, 1000):
        assert tree(collective, p).steps < ring(collective, p).steps
        assert tree(collective, p).steps <= 2 * math.log2(p)
        assert tree(collective, p).share >= ring(collective, p).share


def test_the_interface_of_a_node_carries_what_the_ring_and_the_hierarchy_send() -> None:
    """N nodes of g ranks: a flat ring puts 2(W−1)/W·S through each NIC, the hierarchy 2(N−1)/N·S."""
    p, g = 32, 4
    over, under = flat("all_reduce", p, g, "ring"), hierarchical("all_reduce", p, g, "ring")
    assert over.inter.share == pytest.approx(2 * 31 / 32)
    assert under.inter.share == pytest.approx(2 * 7 / 8)
    assert under.intra.share == pytest.approx(2 * 3 / 4)
    assert [over.inter.steps, under.inter.steps] == pytest.approx([2 * 7, 2 * 7])
    assert over.inter.steps + over.intra.steps == pytest.approx(2 * (p - 1))
    gathers = [each("all_gather", p, g, "ring").inter.share for each in (flat, hierarchical)]
    assert gathers == [p - 1, p - g]
    assert flat("all_to_all", p, g, "ring").inter.share == pytest.approx(g * (p - g) / p)


def test_ranks_of_one_node_use_no_network() -> None:
    cost = flat("all_reduce", 4, 8, "ring")
    assert (cost.inter.steps, cost.inter.share) == (0, 0)
    assert cost.intra == ring("all_reduce", 4)
    assert hierarchical("all_reduce", 4, 8, "ring") == cost
    assert hierarchical("all_reduce", 4, 1, "ring") == flat("all_reduce", 4, 1, "ring")
