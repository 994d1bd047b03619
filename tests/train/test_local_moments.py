"""Tests of DES-LOC: averages of Adam's moments over ranks, at periods of their own."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from mounted_runs import Spiked, differing, everything, step, training
from small import Points, small_network
from torch import Tensor, nn

from sage.comm.threads import simulate
from sage.comm.wire import Wire
from sage.data.dataset import Batch
from sage.train.loop import Training

ADAM: dict[str, Any] = {"optimizer": "adamw", "lr": 0.01, "reducer": "exact", "epochs": 9.0}
MOMENTS = ("exp_avg", "exp_avg_sq")
NUM_ELEMENTS = 163
"""Of the small network."""


def states(run: Training) -> list[Tensor]:
    """The parameters and both moments."""
    found = []
    for p in run.model.parameters():
        state = run.optimizer.state[p]
        found += [p.detach().clone(), state["exp_avg"].clone(), state["exp_avg_sq"].clone()]
    return found


def batches_of(rank: int, world_size: int) -> Iterator[Batch]:
    for epoch in range(9):
        yield from Points().train_batches(epoch=epoch, rank=rank, world_size=world_size, batch_size=2, seed=0)


def plain(steps: int, periods: tuple[int, int, int]) -> list[list[Tensor]]:
    """Two ranks with torch's AdamW, whose parameters and moments are averaged at three periods."""
    models = [small_network().double() for _ in range(2)]
    optimizers = [torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0) for model in models]
    batches = [batches_of(rank, 2) for rank in range(2)]
    for t in range(1, steps + 1):
        for model, optimizer, mine in zip(models, optimizers, batches, strict=True):
            x_BF, y_B = next(mine)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x_BF.double()), y_B).backward()
            optimizer.step()
        for pair in zip(*(model.parameters() for model in models), strict=True):
            kept = [optimizer.state[p] for optimizer, p in zip(optimizers, pair, strict=True)]
            tensors = [
                [p.data for p in pair],
                [state["exp_avg"] for state in kept],
                [state["exp_avg_sq"] for state in kept],
            ]
            for both, period in zip(tensors, periods, strict=True):
                if t % period == 0:
                    mean = (both[0] + both[1]) / 2
                    for x in both:
                        x.copy_(mean)
    return [
        [x for p in model.parameters() for x in (p.detach(), *(optimizer.state[p][n] for n in MOMENTS))]
        for model, optimizer in zip(models, optimizers, strict=True)
    ]


@pytest.mark.parametrize("periods", [(3, 3, 3), (2, 6, 4)], ids=["local Adam", "three periods"])
def test_parameters_and_moments_are_those_of_a_plain_implementation(
    tmp_path: Path, periods: tuple[int, int, int]
) -> None:
    """With equal periods this is local averaging of the parameters and the state."""
    every, first, second = periods

    def work(wire: Wire) -> list[Tensor]:
        given: dict[str, Any] = {
            "local_steps": every,
            "first_moment_steps": first,
            "second_moment_steps": second,
        }
        return states(step(training(wire, tmp_path, **ADAM, **given), 13))

    for found, expected in zip(simulate(2, work), plain(13, periods), strict=True):
        for mine, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(mine.double(), theirs, rtol=1e-4, atol=1e-6)


def test_with_equal_periods_all_ranks_have_the_same_state_after_a_round(tmp_path: Path) -> None:
    def work(wire: Wire) -> list[list[Tensor]]:
        given: dict[str, Any] = {"local_steps": 3, "first_moment_steps": 3, "second_moment_steps": 3}
        run = training(wire, tmp_path, **ADAM, **given)
        return [states(step(run, 1)) for _ in range(6)]

    one, other = simulate(2, work)
    same = [all(map(torch.equal, a, b)) for a, b in zip(one, other, strict=True)]
    assert same == [False, False, True, False, False, True]


def test_the_bytes_of_each_moment_are_dense_over_its_period(tmp_path: Path) -> None:
    """At periods K, 3K and 6K, they are half of the bytes of averaging all three every K steps."""

    def payload(wire: Wire, periods: tuple[int, int]) -> tuple[int, int]:
        first, second = periods
        run = training(
            wire, tmp_path, **ADAM, local_steps=2, first_moment_steps=first, second_moment_steps=second
        )
        before = wire.ledger.copy()
        step(run, 12)
        sent = wire.ledger.since(before).payload
        return sent["values"], sent["moments"]

    def work(wire: Wire) -> tuple[tuple[int, int], tuple[int, int]]:
        return payload(wire, (6, 12)), payload(wire, (2, 2))

    for desynced, local_adam in simulate(2, work):
        assert desynced == (6 * 4 * NUM_ELEMENTS, (2 + 1) * 4 * NUM_ELEMENTS)
        assert local_adam == (6 * 4 * NUM_ELEMENTS, (6 + 6) * 4 * NUM_ELEMENTS)
        assert 2 * sum(desynced) == sum(local_adam)


@pytest.mark.parametrize("at", [3, 4])
@pytest.mark.parametrize("fragments", [1, 2])
def test_a_run_resumes_to_the_bit_between_averages(tmp_path: Path, at: int, fragments: int) -> None:
    def work(wire: Wire) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        given: dict[str, Any] = {
            "local_steps": 2,
            "first_moment_steps": 5,
            "second_moment_steps": 6,
            "fragments": fragments,
        }
        run = training(wire, tmp_path, **ADAM, **given)
        step(run, at).save()
        resumed = training(wire, tmp_path, **ADAM, **given)
        assert resumed.resume() == "its own checkpoint"
        return everything(step(run, 5)), everything(step(resumed, 5))

    for uninterrupted, resumed in simulate(2, work):
        assert differing(uninterrupted, resumed) == []


def test_a_rank_that_has_skipped_all_its_steps_counts_with_zeros(tmp_path: Path) -> None:
    class Always(Spiked):
        def loss(self, model: nn.Module, batch: Batch) -> Tensor:
            self.calls = 3
            self.again = True
            return super().loss(model, batch)

    def work(wire: Wire) -> list[Tensor]:
        task = type("Task", (Always,), {"here": wire.rank == 1})
        given: dict[str, Any] = {"local_steps": 4, "first_moment_steps": 2, "non_finite": "skip"}
        run = step(training(wire, tmp_path, task=task, **ADAM, **given), 2)
        assert bool(run.optimizer.state) == (wire.rank == 0)
        return [state["exp_avg"].clone() for state in run.optimizer.state.values()]

    def alone(wire: Wire) -> list[Tensor]:
        run = step(training(wire, tmp_path, task=Spiked, **ADAM, local_steps=4), 2)
        return [state["exp_avg"].clone() for state in run.optimizer.state.values()]

    for averaged, own in zip(simulate(2, work)[0], simulate(2, alone)[0], strict=True):
        torch.testing.assert_close(averaged, own / 2)
