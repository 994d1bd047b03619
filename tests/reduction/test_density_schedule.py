"""Tests of the target density: by step, by epoch, by regime, and by budget."""

import itertools
from typing import Any

import pytest
import torch

from sage.comm.threads import simulate
from sage.comm.wire import Wire
from sage.reduction.density_schedule import Budget, Constant, Cosine, Critical, Linear, Warmup

ZERO = torch.zeros(4)


def alone(work: Any) -> Any:
    return simulate(1, work)[0]


def by_step(schedule: Constant, count: int) -> list[float]:
    def work(wire: Wire) -> list[float]:
        asked = []
        for _ in range(count):
            asked.append(schedule.now())
            schedule.learn(ZERO, wire)
        return asked

    return alone(work)


def by_epoch(schedule: Constant, count: int) -> list[float]:
    def work(wire: Wire) -> list[float]:
        asked = []
        for epoch in range(count):
            schedule.begin_epoch(epoch, 0.1, wire)
            asked.append(schedule.now())
        return asked

    return alone(work)


def test_the_warm_up_is_that_of_dgc() -> None:
    assert by_epoch(Warmup(0.001), 6) == [0.25, 0.0625, 0.015625, 0.00390625, 0.001, 0.001]


def test_the_warm_up_is_never_below_the_density() -> None:
    assert by_epoch(Warmup(0.5), 3) == [0.5, 0.5, 0.5]


def test_linear_and_cosine_go_from_start_to_density_and_stay() -> None:
    assert by_step(Linear(0.1, start=0.5, steps=4), 7) == pytest.approx([0.5, 0.4, 0.3, 0.2, 0.1, 0.1, 0.1])
    assert by_step(Cosine(0.1, start=0.5, steps=2), 4) == pytest.approx([0.5, 0.3, 0.1, 0.1])


def test_critical_regimes_are_the_first_epoch_fast_change_and_a_fall_of_the_learning_rate() -> None:
    schedule = Critical(0.01)
    schedule.bind(4)
    # Epoch, learning rate, the norm of the previous epoch, and the target density from then on.
    history = [
        (0, 0.1, 0.0, 0.1),  # the first
        (5, 0.1, 9.0, 0.1),  # no decision
        (10, 0.1, 4.0, 0.1),  # from 0 to 4
        (20, 0.1, 3.0, 0.01),  # a quarter less
        (30, 0.1, 1.0, 0.1),  # two thirds less
        (40, 0.1, 1.4, 0.01),
        (43, 0.05, 1.4, 0.1),  # the learning rate has fallen
        (50, 0.05, 1.4, 0.01),
    ]

    def work(wire: Wire) -> list[float]:
        asked = []
        for epoch, lr, norm, _ in history:
            schedule.learn(torch.tensor([0.0, norm, 0.0, 0.0]), wire)
            schedule.begin_epoch(epoch, lr, wire)
            asked.append(schedule.now())
        return asked

    assert alone(work) == pytest.approx([asked for *_, asked in history])


def test_all_ranks_use_rank_0s_decision() -> None:
    def work(wire: Wire) -> float:
        schedule = Critical(0.01, start=0.5)
        schedule.bind(4)
        schedule.begin_epoch(0, 0.1, wire)
        schedule.norm.fill_(1.0)
        schedule.learn(torch.tensor([1.0 + wire.rank, 0, 0, 0]), wire)
        schedule.begin_epoch(10, 0.1, wire)
        return schedule.now()

    assert simulate(2, work) == [0.01, 0.01]


class Link:
    """A simulated link and clock: each step computes for a second and sends 1 MB for each 0.1 of density."""

    def __init__(self, wire: Wire, seconds_per_mb: float) -> None:
        self.now, self.wire, self.seconds_per_mb = 0.0, wire, seconds_per_mb

    def step(self, schedule: Constant) -> None:
        size = 1e7 * schedule.now()
        talking = size / 1e6 * self.seconds_per_mb
        self.wire.ledger.add("sum", {"values": int(size)}, (int(size), int(size)), talking)
        self.now += 1 + talking
        schedule.learn(ZERO, self.wire)


@pytest.mark.parametrize(
    ("unit", "allowed", "expected"),
    [
        ("bytes", 2e5, 0.02),  # 0.2 MB in a second
        ("time", 0.5, 0.05),  # half a second in addition to one of computing, at 1 s per MB
    ],
)
def test_a_budget_is_met_and_all_ranks_have_the_same_target(
    unit: Any, allowed: float, expected: float
) -> None:
    def work(wire: Wire) -> list[float]:
        link = Link(wire, 1.0 if unit == "time" else 0.0)
        schedule = Budget(0.5, allowed=allowed, unit=unit, clock=lambda: link.now)
        asked = []
        for _ in range(200):
            link.step(schedule)
            asked.append(schedule.now())
        return asked

    seen = simulate(2, work)
    assert seen[0] == seen[1]
    assert seen[0][-1] == pytest.approx(expected, rel=0.05)
    # At most halved at a time, every ten steps.
    assert all(after >= before / 2 for before, after in itertools.pairwise(seen[0]))
    assert len(set(seen[0])) <= 21


def test_a_budget_resumes_from_its_state() -> None:
    def work(wire: Wire) -> tuple[float, float]:
        link = Link(wire, 0.0)
        first = Budget(0.5, allowed=1e5, unit="bytes", clock=lambda: link.now)
        for _ in range(40):
            link.step(first)
        second = Budget(0.5, allowed=1e5, unit="bytes")
        second.load_state_dict(first.state_dict())
        return first.now(), second.now()

    before, after = alone(work)
    assert before == after < 0.5
