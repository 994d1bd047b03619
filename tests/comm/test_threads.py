"""Tests of ranks simulated by threads: they alternate deterministically and never deadlock."""

from collections.abc import Callable

import pytest
import torch

from sage.comm.threads import simulate
from sage.comm.transport import WireError
from sage.comm.wire import Wire


def draw(wire: Wire) -> list[float]:
    """Random numbers, with a collective between every two."""
    drawn = []
    for _ in range(3):
        drawn.append(torch.rand(()).item())
        wire.sum(torch.ones(1))
    return drawn


def test_the_results_are_ordered_by_rank() -> None:
    assert simulate(5, lambda wire: (wire.rank, wire.world_size)) == [(rank, 5) for rank in range(5)]


def test_ranks_alternate_at_every_collective_in_the_same_order_in_every_run() -> None:
    def run() -> list[tuple[int, int]]:
        turns: list[tuple[int, int]] = []

        def work(wire: Wire) -> None:
            for step in range(3):
                turns.append((step, wire.rank))
                wire.sum(torch.ones(2))

        simulate(4, work)
        return turns

    assert run() == run() == [(step, rank) for step in range(3) for rank in range(4)]


def test_hundreds_of_ranks_can_be_simulated() -> None:
    sums = simulate(256, lambda wire: wire.sum(torch.tensor([wire.rank])).item())
    assert sums == [256 * 255 // 2] * 256


@pytest.mark.parametrize("world_size", [1, 2, 5])
def test_every_rank_draws_the_same_numbers_as_alone(world_size: int) -> None:
    torch.manual_seed(3)
    alone = torch.rand(3).tolist()
    torch.manual_seed(3)
    assert simulate(world_size, draw) == [alone] * world_size


def test_a_rank_that_seeds_itself_seeds_no_other() -> None:
    def work(wire: Wire) -> list[float]:
        torch.manual_seed(wire.rank)
        return draw(wire)

    def alone(seed: int) -> list[float]:
        torch.manual_seed(seed)
        return torch.rand(3).tolist()

    assert simulate(3, work) == [alone(seed) for seed in range(3)]


@pytest.mark.parametrize("fails", [False, True])
def test_the_random_state_outside_is_unchanged(fails: bool) -> None:
    def work(wire: Wire) -> None:
        torch.manual_seed(7)
        draw(wire)
        if fails:
            raise ValueError

    before = torch.get_rng_state()
    try:
        simulate(3, work)
    except ValueError:
        assert fails
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("early", [0, 1, 2])
def test_waiting_for_a_rank_that_has_ended_is_an_error(early: int) -> None:
    def work(wire: Wire) -> None:
        wire.sum(torch.ones(3))
        if wire.rank != early:
            wire.gather(values=torch.ones(3))

    message = rf"waits in gather\(values float32\[3\]\) for ranks that have ended: rank {early} has ended"
    with pytest.raises(WireError, match=message):
        simulate(3, work)


def test_the_error_of_one_rank_is_raised_before_its_consequences_on_others() -> None:
    suffered: list[str] = []

    def work(wire: Wire) -> None:
        if wire.rank == 2:
            raise KeyError("mine")
        try:
            wire.sum(torch.ones(3))
        except WireError as error:
            suffered.append(str(error))
            raise

    with pytest.raises(KeyError, match="mine"):
        simulate(4, work)
    assert len(suffered) == 3
    assert all("rank 2 has failed (KeyError: 'mine')" in result for result in suffered)


def test_of_several_errors_the_first_is_raised() -> None:
    def work(wire: Wire) -> None:
        for _ in range(3 - wire.rank):
            wire.sum(torch.ones(1))
        raise ValueError(f"rank {wire.rank}")

    with pytest.raises(ValueError, match="rank 2"):
        simulate(3, work)


@pytest.mark.parametrize(
    "collective",
    [
        lambda wire: wire.gather(values=torch.zeros(2))[0],
        lambda wire: wire.gather_uneven(values=torch.zeros(2))[1][0],
        lambda wire: wire.sum(torch.zeros(2)),
        lambda wire: wire.broadcast(torch.zeros(2)),
        lambda wire: torch.cat((wire.gather_to(torch.zeros(2)), torch.zeros(1, 2))),
        lambda wire: wire.reduce_scatter(torch.zeros(3, 2)),
        lambda wire: wire.all_to_all(torch.zeros(3, 2)),
        lambda wire: wire.begin_sum(torch.zeros(2)).wait(),
    ],
)
def test_no_rank_can_write_to_the_result_of_another(collective: Callable[[Wire], torch.Tensor]) -> None:
    def work(wire: Wire) -> float:
        mine = collective(wire)
        wire.texts("everybody has theirs")
        mine.fill_(1 + wire.rank)
        wire.texts("everybody has written")
        return mine.sum().item() / mine.numel()

    assert simulate(3, work) == [1, 2, 3]
