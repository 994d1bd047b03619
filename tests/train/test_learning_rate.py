"""Tests of the learning rate: warm-up, schedules and floor, against known values and torch's own."""

from itertools import pairwise
from typing import Any

import pytest
import torch

from sage.config import Config
from sage.train.learning_rate import peak_scale, schedule
from sage.train.schedules import learning_rate

COURSE: dict[str, Any] = {
    "lr": 0.1,
    "peak_scale": 8.0,
    "warmup_steps": 50,
    "steps_per_epoch": 10,
    "total_steps": 200,
    "milestones": (10, 15),
    "factor": 0.1,
    "lr_decay": 0.25,
    "decay_from": 6,
    "min_lr": 0.01,
    "warmdown": 0.25,
}
KINDS = ["constant", "step", "cosine", "decay", "linear", "warmdown"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_warm_up_is_linear_from_lr_to_the_peak_and_every_schedule_continues_there(kind: str) -> None:
    warm = [schedule(step, kind=kind, **COURSE) for step in range(51)]
    assert (warm[0], warm[50]) == pytest.approx((0.1, 0.8))
    assert [b - a for a, b in pairwise(warm)] == pytest.approx([0.7 / 50] * 50)


@pytest.mark.parametrize("kind", KINDS)
def test_after_the_warm_up_the_rate_never_rises(kind: str) -> None:
    rates = [schedule(step, kind=kind, **COURSE) for step in range(50, 210)]
    assert all(b <= a for a, b in pairwise(rates))


def test_the_schedules_reach_the_values_computed_by_hand() -> None:
    assert schedule(99, kind="step", **COURSE) == pytest.approx(0.8)
    assert schedule(100, kind="step", **COURSE) == pytest.approx(0.08)
    assert schedule(150, kind="step", **COURSE) == pytest.approx(0.008)
    assert schedule(125, kind="cosine", **COURSE) == pytest.approx(0.44)
    assert schedule(200, kind="cosine", **COURSE) == pytest.approx(0.08)
    assert schedule(125, kind="cosine", **{**COURSE, "min_lr": 0.0}) == pytest.approx(0.4)
    assert schedule(200, kind="cosine", **{**COURSE, "min_lr": 0.0}) == pytest.approx(0)
    assert schedule(100, kind="linear", **COURSE) == pytest.approx(0.08 + 0.72 * 2 / 3)
    assert schedule(200, kind="linear", **COURSE) == pytest.approx(0.08)
    assert schedule(200, kind="linear", **{**COURSE, "min_lr": 0.0}) == 0
    assert schedule(150, kind="warmdown", **COURSE) == pytest.approx(0.8)
    assert schedule(175, kind="warmdown", **COURSE) == pytest.approx(0.44)
    assert schedule(200, kind="warmdown", **COURSE) == pytest.approx(0.08)
    assert schedule(69, kind="decay", **COURSE) == pytest.approx(0.8)
    assert schedule(89, kind="decay", **COURSE) == pytest.approx(0.8 / 1.25**2)


def test_the_peak_grows_with_the_world_size_and_is_never_below_lr() -> None:
    assert peak_scale(2, 8) == 16
    assert peak_scale(0.25, 2) == 1
    assert peak_scale(0, 64) == 1


def test_a_warm_down_that_begins_in_the_warm_up_begins_at_its_end() -> None:
    rates = [schedule(step, kind="warmdown", **{**COURSE, "warmdown": 0.9}) for step in range(201)]
    linear = [schedule(step, kind="linear", **COURSE) for step in range(201)]
    assert rates == pytest.approx(linear)


@pytest.mark.parametrize("kind", ["cosine", "linear"])
def test_cosine_and_linear_with_a_floor_are_those_of_torch(kind: str) -> None:
    given: dict[str, Any] = {"lr": 0.1, "peak_scale": 1.0, "min_lr": 0.02, "warmup_steps": 0}
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1)
    scheduler: Any = (
        torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=20, eta_min=0.02)
        if kind == "cosine"
        else torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.2, total_iters=20)
    )
    for step in range(21):
        rate = schedule(step, kind=kind, steps_per_epoch=1, total_steps=20, **given)
        assert rate == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()


def test_the_warm_up_of_a_gpt_is_that_of_nanogpt() -> None:
    config = Config(
        workload="w",
        task="classify",
        model="resnet",
        data="digits",
        world_size=1,
        lr=1e-3,
        min_lr=1e-4,
        schedule="cosine",
        warmup_steps=100,
        warmup_from=1 / 101,
    )
    for step in range(100):
        rate = learning_rate(config, step, steps_per_epoch=300, total_steps=2000)
        assert rate == pytest.approx(1e-3 * (step + 1) / 101)
    assert learning_rate(config, 100, steps_per_epoch=300, total_steps=2000) == 1e-3
    assert learning_rate(config, 2000, steps_per_epoch=300, total_steps=2000) == pytest.approx(1e-4)


def test_an_unknown_schedule_is_refused_with_the_allowed_ones() -> None:
    with pytest.raises(ValueError, match="constant, step, cosine, linear, warmdown or decay"):
        schedule(60, kind="wsd", **COURSE)
