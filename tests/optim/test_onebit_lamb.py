"""Tests of 1-bit LAMB against plain code, of its state and of its bytes."""
# N = elements of all parameters, W = ranks

from typing import Any

import pytest
import torch
from one_bit_by_hand import by_hand
from test_onebit_adam import NUMEL, backward, small_model
from torch import Tensor

from sage.comm.threads import simulate
from sage.comm.wire import Wire
from sage.optim import OneBitLamb
from sage.optim.onebit_lamb import next_factor

OPTIONS: dict[str, Any] = {"lr": 0.01, "freeze_step": 4, "eps": 1e-3}


def trained(wire: Wire, steps: range, **options: Any) -> tuple[list[Tensor], OneBitLamb]:
    model = small_model()
    optimizer = OneBitLamb(model.parameters(), wire=wire, **{**OPTIONS, **options})
    for step in steps:
        backward(model, wire.rank, step)
        optimizer.step()
    return [p.detach() for p in model.parameters()], optimizer


def lamb_by_hand(world_size: int, steps: int, decay: float) -> list[Tensor]:
    """The parameters by the formulas, each rank's gradient at the common parameters."""
    model = small_model()
    places = list(model.parameters())
    theta = [p.detach().clone() for p in places]
    m = [torch.zeros_like(p) for p in theta]
    v, fresh = [torch.zeros_like(p) for p in theta], [torch.zeros_like(p) for p in theta]
    average, factor, scale = [0.0] * 3, [1.0] * 3, [1.0] * 3
    sent: list[list[Tensor]] = []
    for step in range(1, steps + 1):
        gradients: list[list[Tensor]] = []
        for rank in range(world_size):
            with torch.no_grad():
                for p, x in zip(places, theta, strict=True):
                    p.copy_(x)
            backward(model, rank, step - 1)
            gradients.append([p.grad.clone() for p in places if p.grad is not None])
        before = m
        if step <= 4:
            mean = [torch.stack(list(each)).mean(0) for each in zip(*gradients, strict=True)]
            m = [0.9 * a + 0.1 * g for a, g in zip(m, mean, strict=True)]
            v = [0.999 * a + 0.001 * g.square() for a, g in zip(v, mean, strict=True)]
        else:
            rows = []
            for each in gradients:
                own = [0.9 * a + 0.1 * g for a, g in zip(m, each, strict=True)]
                rows.append(torch.cat([a.reshape(-1) * b for a, b in zip(own, scale, strict=True)]))
            sent.append(rows)
            parts = by_hand(sent, [NUMEL], world_size)[0][-1].split([p.numel() for p in theta])
            m = [x.view_as(p) / a for x, p, a in zip(parts, theta, scale, strict=True)]
        for at in range(3):
            adam = m[at] / (v[at].sqrt() + 1e-3)
            u = adam + decay * theta[at]
            if step <= 4:
                c = min(10.0, max(0.01, float(theta[at].norm() / u.norm())))
                average[at] = 0.9 * average[at] + 0.1 * c
            else:
                recovered = (m[at] - 0.9 * before[at]) / 0.1
                fresh[at] = 0.999 * fresh[at] + 0.001 * recovered.square()
                h = float(((v[at].sqrt() + 1e-3) / (fresh[at].sqrt() + 1e-3)).max())
                if decay:
                    r = min(1.0, float(adam.norm() / u.norm()))
                    h = h * r + 1 - r
                h = min(4.0, max(0.5, h))
                factor[at] = min(1.1 * factor[at], max(0.9 * factor[at], h))
                c = average[at] * factor[at]
            theta[at] = theta[at] - 0.01 * c * u
        if step == 4:
            fresh = list(v)
            roots = [float(a.square().mean().sqrt()) for a in m]
            scale = [sum(roots) / 3 / root for root in roots]
    return theta


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize(("steps", "decay"), [(4, 0.1), (12, 0.0), (12, 0.1)])
def test_it_is_the_formulas_and_equal_on_all_ranks(world_size: int, steps: int, decay: float) -> None:
    expected = lamb_by_hand(world_size, steps, decay)
    outcomes = simulate(world_size, lambda wire: trained(wire, range(steps), weight_decay=decay)[0])
    for ours in outcomes:
        assert all(map(torch.equal, ours, outcomes[0]))
        torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-4)


def test_after_the_freeze_the_coefficients_are_frozen_and_the_factors_move() -> None:
    def work(wire: Wire) -> tuple[list[float], list[float], list[float]]:
        before = trained(wire, range(4))[1].state
        after = trained(wire, range(9))[1].state
        return (
            [float(state["coeff"]) for state in before.values()],
            [float(state["coeff"]) for state in after.values()],
            [float(state["factor"]) for state in after.values()],
        )

    for before, after, factors in simulate(2, work):
        assert before == after
        assert all(0.9**5 - 1e-6 <= factor <= 1.1**5 + 1e-6 and factor != 1 for factor in factors)


def test_a_factor_moves_by_a_tenth_within_its_bounds() -> None:
    wanted = [9.0, 9.0, 1.2, 0.1, 0.1]
    found, last = [], 1.0
    for each in wanted:
        last = next_factor(each, last, (0.5, 4.0), 0.1)
        found.append(last)
    assert found == pytest.approx([1.1, 1.21, 1.2, 1.08, 0.972])
    assert next_factor(9.0, 3.9, (0.5, 4.0), 0.1) == 4.0
    assert next_factor(0.1, 0.51, (0.5, 4.0), 0.1) == 0.5


def test_the_momenta_of_all_parameters_have_one_scale_on_the_way() -> None:
    chunk = 8 * -(-NUMEL // 16)

    def work(wire: Wire) -> list[dict[str, int]]:
        model = small_model()
        optimizer = OneBitLamb(model.parameters(), wire=wire, **OPTIONS)
        payloads = []
        for step in range(5):
            before = wire.ledger.copy()
            backward(model, wire.rank, step)
            optimizer.step()
            payloads.append(dict(wire.ledger.since(before).payload))
        return payloads

    for payloads in simulate(2, work):
        assert payloads == [{"values": 4 * NUMEL}] * 4 + [{"values": 3 * chunk // 8, "scales": 8}]


@pytest.mark.parametrize("cut", [2, 4, 7])
def test_it_continues_to_the_bit(cut: int) -> None:
    def work(wire: Wire) -> tuple[list[Tensor], list[Tensor]]:
        whole, _ = trained(wire, range(10), weight_decay=0.1)
        first, optimizer = trained(wire, range(cut), weight_decay=0.1)
        model = small_model()
        with torch.no_grad():
            for p, x in zip(model.parameters(), first, strict=True):
                p.copy_(x)
        other = OneBitLamb(model.parameters(), wire=wire, **OPTIONS)
        own = optimizer.own_state_dict()
        other.load_state_dict(optimizer.state_dict())
        other.load_own_state_dict(own)
        for step in range(cut, 10):
            backward(model, wire.rank, step)
            other.step()
        return whole, [p.detach() for p in model.parameters()]

    for whole, continued in simulate(2, work):
        assert all(map(torch.equal, whole, continued))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_coeff": 11.0}, "min_coeff is 11 and max_coeff is 10; expected finite numbers above 0"),
        ({"factor_min": 0.0}, "factor_min is 0 and factor_max is 4"),
        ({"coeff_beta": 1.0}, "coeff_beta is 1; expected a number from 0 to below 1"),
        ({"factor_threshold": -0.1}, "factor_threshold is -0.1"),
        ({"freeze_step": 0}, "freeze_step is 0"),
    ],
)
def test_an_option_out_of_range_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        simulate(1, lambda wire: trained(wire, range(0), **options))
