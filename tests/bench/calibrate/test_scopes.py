"""Scopes of ranks that share nodes, the collectives between them, and the messages of simulated ranks."""

import os

import pytest
import torch
from gloo import Group, processes

from sage.bench.calibrate import links
from sage.bench.calibrate.collectives import CALLS
from sage.bench.calibrate.gradients import Gradients, fill, flat_of
from sage.bench.calibrate.messages import of_ranks, typical
from sage.bench.calibrate.reductions import messages_on_threads, reductions
from sage.bench.calibrate.scopes import Scoped, nodes_of, scopes_of
from sage.comm.process import ProcessWire
from sage.comm.rendezvous import local_places
from sage.comm.threads import simulate
from sage.comm.transport import WireError
from sage.comm.wire import Wire
from sage.config import Config, load, resolve
from sage.predict.calibration import Samples

CPU = torch.device("cpu")
SHAPES = [("w", (40, 30)), ("b", (30,)), ("v", (2000,))]


def scopes_on(wire: Wire, names: str) -> list[Scoped]:
    """The scopes of this rank, if rank r is on the node of the r-th letter."""
    os.environ["SLURMD_NODENAME"] = names[wire.rank]
    assert isinstance(wire, ProcessWire)
    return scopes_of(wire, nodes_of(wire), CPU)


def measured(names: str) -> list[dict[str, list[Samples]]]:
    """What each rank measures in each of its scopes, with 1 KiB and 4 KiB."""

    def work(wire: Wire) -> dict[str, list[Samples]]:
        scopes = {each.scope: each for each in scopes_on(wire, names)}
        found: dict[str, list[Samples]] = {}
        for name, each in sorted(scopes.items()):
            result = links.measure(each, CPU, seconds=1000, messages={}, grid=(1024, 4096))
            assert result.left_out == []
            found[name] = result.samples
        return found

    return processes(len(names), work)


@pytest.mark.parametrize(
    ("names", "scopes"),
    [
        ("aa", [{"intra": 2}] * 2),
        ("ab", [{"inter": 2}] * 2),
        ("aabb", [{"inter": 2, "intra": 2}, {"intra": 2}] * 2),
        ("abb", [{"inter": 2}, {"inter": 2, "intra": 2}, {"intra": 2}]),
    ],
)
def test_ranks_measure_within_their_node_and_between_nodes(names: str, scopes: list[dict[str, int]]) -> None:
    for found, expected in zip(measured(names), scopes, strict=True):
        assert {scope: samples[0].ranks for scope, samples in found.items()} == expected
        for samples in found.values():
            assert [(each.collective, each.bytes) for each in samples] == [
                (collective, size) for collective in CALLS for size in (1024, 4096)
            ]


def test_all_ranks_of_a_scope_have_the_times_of_the_slowest() -> None:
    first, second = measured("aa")
    assert first == second


def test_a_rank_that_ends_is_named_by_the_ranks_of_its_scope() -> None:
    def work(wire: Wire) -> None:
        (scoped,) = [each for each in scopes_on(wire, "aabb") if each.scope == "intra"]
        if wire.rank == 3:
            os._exit(7)
        scoped.wire.sum(torch.ones(4))

    with Group(local_places(4), work) as group:
        outcomes = dict(group.outcomes())
    assert isinstance(outcomes[2], WireError)
    call, _, cause = str(outcomes[2]).partition(" failed after ")
    assert call == "rank 2: sum(values float32[4]) between ranks 2, 3"
    assert "rank 3 does not respond" in cause


def test_sizes_beyond_the_time_are_left_out_and_named() -> None:
    def work(wire: Wire) -> links.Links:
        (scoped,) = scopes_on(wire, "aa")
        return links.measure(scoped, CPU, seconds=1e-6, messages={})

    for found in processes(2, work):
        assert [each.bytes for each in found.samples] == [1024] * len(CALLS)
        assert len(found.left_out) == len(CALLS)
        assert all("measured up to 1.02 kB per rank; one of 4.1 kB takes" in text for text in found.left_out)


# Messages


def gradients(rank: int) -> Gradients:
    """Random gradients of four steps, others on each rank."""
    generator = torch.Generator().manual_seed(rank)
    numel = sum(torch.Size(shape).numel() for _, shape in SHAPES)
    return Gradients(SHAPES, frozenset(), [torch.randn(numel, generator=generator) for _ in range(4)])


def configured(reducer: str) -> Config:
    return resolve(load("digits-ff", overrides={"reducer": reducer, "min_compress": 100}))


@pytest.mark.parametrize("reducer", ["exact", "topk", "powersgd", "int8", "ps", "oktopk"])
def test_simulated_ranks_send_what_ranks_send(reducer: str) -> None:
    config = configured(reducer)
    done = simulate(4, lambda wire: reductions(wire, config, gradients(wire.rank), steps=3, seconds=60))
    sent = typical([of_ranks(step) for step in zip(*(rank.messages for rank in done), strict=True)])
    simulated = messages_on_threads(4, config, gradients(0), steps=8)
    assert [each.collective for each in simulated] == [each.collective for each in sent]
    if reducer != "oktopk":  # which sends as many elements as exceed a threshold
        assert simulated == sent


def test_a_gradient_has_the_same_values_in_every_order_of_the_parameters() -> None:
    given = gradients(0)
    flat = flat_of(configured("topk"), given)
    fill(flat, given.views(5))
    assert [span.name for span in flat.layout.spans] == ["w", "v", "b"]  # the small one is sent dense
    for name, view in given.views(1).items():
        assert torch.equal(flat.views()[name], view)


def test_a_reducer_that_needs_squares_is_refused() -> None:
    with pytest.raises(ValueError, match="squares of the samples' gradients"):
        messages_on_threads(2, configured("variance"), gradients(0), steps=2)
