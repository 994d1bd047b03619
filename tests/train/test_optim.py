"""Tests of the steps before the reduction, clipping and the running average."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sage.train.optim import BeforeReduction, RunningAverage, clip_
from sage.train.optimizers import build_optimizer


def flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([t.reshape(-1) for t in tensors])


def small_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def backward(model: nn.Module, step: int) -> Tensor:
    generator = torch.Generator().manual_seed(step)
    model.zero_grad()
    model(torch.randn(6, 3, generator=generator)).square().sum().backward()
    return flat([p.grad for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("decay_norms", [False, True])
def test_momentum_before_the_reduction_of_one_rank_is_momentum_after_it(
    nesterov: bool, decay_norms: bool
) -> None:
    options: dict[str, Any] = {
        "momentum": 0.9,
        "nesterov": nesterov,
        "weight_decay": 0.1,
        "decay_norms": decay_norms,
    }
    after, before = small_model(), small_model()
    optimizer_after = build_optimizer(after, kind="sgd", lr=0.01, **options)
    optimizer_before = build_optimizer(before, kind="sgd", lr=0.01)
    rule = BeforeReduction(list(before.parameters()), **options)
    for step in range(5):
        backward(after, step)
        optimizer_after.step()
        g_N = rule(backward(before, step))
        for p, g in zip(
            before.parameters(), g_N.split([p.numel() for p in before.parameters()]), strict=True
        ):
            p.grad = g.view_as(p)
        optimizer_before.step()
    torch.testing.assert_close(flat(list(before.parameters())), flat(list(after.parameters())))


def test_momentum_before_the_reduction_is_in_place_and_resumes_from_its_state() -> None:
    parameters = [torch.zeros(2, 2), torch.zeros(3)]
    rule = BeforeReduction(parameters, momentum=0.5, nesterov=True)
    g_N = torch.ones(7)
    assert rule(g_N) is g_N
    torch.testing.assert_close(g_N, torch.full((7,), 1.5))
    other = BeforeReduction(parameters, momentum=0.5, nesterov=True)
    other.load_state_dict(rule.state_dict())
    torch.testing.assert_close(other(torch.ones(7)), rule(torch.ones(7)), rtol=0, atol=0)
    assert not BeforeReduction(parameters, weight_decay=1.0).state_dict()


def test_clipping_keeps_the_direction_and_bounds_the_norm() -> None:
    given_N = torch.tensor([3.0, 4.0])
    g_N = given_N.clone()
    assert clip_([g_N], 1.0) == 5
    torch.testing.assert_close(g_N, given_N / 5)
    g_N = given_N.clone()
    clip_([g_N], 1.0, world_size=4)
    torch.testing.assert_close(g_N, given_N / 10)
    g_N = given_N.clone()
    assert clip_([g_N], 6.0) == 5
    assert torch.equal(g_N, given_N)
    assert clip_([torch.zeros(3)], 0.4) == 0


def test_the_running_average_is_the_mean_of_the_given_models() -> None:
    model, average = small_model(), RunningAverage()
    seen = []
    for step in range(4):
        with torch.no_grad():
            for p in model.parameters():
                p.add_(math.sin(step + 1))
            model(torch.randn(5, 3))
        average.update(model)
        seen.append(copy.deepcopy(model.state_dict()))
        if step == 1:
            resumed = RunningAverage()
            resumed.load_state_dict(copy.deepcopy(average.state_dict()))
            average = resumed
    last = copy.deepcopy(model.state_dict())
    with average.swapped(model):
        for name, x in model.state_dict().items():
            if x.is_floating_point():
                torch.testing.assert_close(x, torch.stack([state[name] for state in seen]).mean(0))
    assert all(torch.equal(x, last[name]) for name, x in model.state_dict().items())


def test_the_weights_are_restored_even_if_the_evaluation_fails() -> None:
    model, average = nn.Linear(2, 2), RunningAverage()
    average.update(model)
    nn.init.zeros_(model.weight)

    def evaluate() -> None:
        with average.swapped(model):
            assert model.weight.any()
            raise RuntimeError("evaluation")

    with pytest.raises(RuntimeError, match="evaluation"):
        evaluate()
    assert not model.weight.any()
