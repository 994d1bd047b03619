"""Tests of a wire in a script that has its own process group: it works beside it and detects failures."""
# N = elements of a vector

import os
import time
from functools import cache
from typing import Any

import pytest
import torch
import torch.distributed as dist
from gloo import Group, processes

from sage.comm.attached import AttachedWire
from sage.comm.rendezvous import local_places
from sage.comm.transport import WireError
from sage.comm.wire import Wire

CPU = torch.device("cpu")


@cache
def seen() -> list[dict[str, Any]]:
    """The results of each of three ranks, which start once."""

    def work(host: Wire) -> dict[str, Any]:
        wire = AttachedWire(device=CPU)
        # The script's own collective, which begins before ours and ends after it.
        script_N = torch.full((5,), float(host.rank))
        under_way = dist.all_reduce(script_N, async_op=True)
        mean_N = wire.mean(torch.full((3,), float(wire.rank)))
        counts, (values_M,) = wire.gather_ragged(values=torch.full((wire.rank + 1,), float(wire.rank)))
        assert under_way is not None
        under_way.wait()
        pair = dist.new_group([1, 2])
        in_pair = []
        if host.rank:
            assert isinstance(pair, dist.ProcessGroup)
            pair_wire = AttachedWire(pair, device=CPU)
            x_N = pair_wire.broadcast(torch.full((2,), float(host.rank)), root=1)
            in_pair = [pair_wire.rank, pair_wire.world_size, *x_N.tolist()]
            pair_wire.close()
        wire.close()
        dist.all_reduce(after_N := torch.ones(1))
        return {
            "mean": mean_N.tolist(),
            "ragged": (counts, values_M.tolist()),
            "script": script_N.tolist(),
            "pair": in_pair,
            "after": after_N.item(),
        }

    return processes(3, work)


def test_an_attached_wire_works_beside_the_scripts_own_group() -> None:
    for view in seen():
        assert view["mean"] == [1.0] * 3
        assert view["ragged"] == ([1, 2, 3], [0.0, 1.0, 1.0, 2.0, 2.0, 2.0])
        assert view["script"] == [3.0] * 5


def test_ranks_and_roots_are_those_of_the_scripts_group() -> None:
    assert [view["pair"] for view in seen()] == [[], [0, 2, 2.0, 2.0], [1, 2, 2.0, 2.0]]


def test_closing_an_attached_wire_keeps_the_scripts_group() -> None:
    assert [view["after"] for view in seen()] == [3.0] * 3


def test_ranks_that_do_not_attach_are_an_error_within_the_time_out() -> None:
    def work(host: Wire) -> None:
        if host.rank == 1:
            time.sleep(30)
        AttachedWire(device=CPU, timeout=1)

    with Group(local_places(2), work) as group:
        outcome = next(outcome for rank, outcome in group.outcomes(60) if rank == 0)
    assert isinstance(outcome, WireError)
    assert "rank 0 of 2 could not create its own process group within 1 s" in str(outcome)


@pytest.mark.parametrize(
    ("variable", "store_host"), [("", "rank 0"), ("TORCHELASTIC_RUN_ID", "the launcher")]
)
def test_the_end_of_the_store_names_the_rank_that_hosts_it(variable: str, store_host: str) -> None:
    def work(host: Wire) -> None:
        if variable:
            os.environ[variable] = "a run"
        wire = AttachedWire(device=CPU, timeout=6)
        wire.mean(torch.ones(3))  # both ranks have attached
        if host.rank == 0:
            os._exit(1)
        wire.mean(torch.ones(3))

    with Group(local_places(2), work) as group:
        outcome = next(outcome for rank, outcome in group.outcomes(60) if rank == 1)
    assert isinstance(outcome, WireError)
    assert f"is gone: {store_host} has ended" in str(outcome)
