"""Tests of 0/1 Adam against plain code, of its gaps, its state and its bytes."""
# N = elements of all parameters, W = ranks

from typing import Any

import pytest
import torch
from one_bit_by_hand import by_hand
from test_onebit_adam import NUMEL, backward, flat, small_model
from torch import Tensor

from sage.comm.threads import simulate
from sage.comm.wire import Wire
from sage.optim import ZeroOneAdam
from sage.optim.zeroone_adam import is_refresh, local_gap

OPTIONS: dict[str, Any] = {
    "lr": 0.01,
    "freeze_step": 6,
    "var_update_scaler": 2,
    "local_step_scaler": 4,
    "local_step_clipper": 4,
    "eps": 1e-3,
}
"""Refreshes in steps 1, 2, 4, 6; synchronisations in steps 7 to 10, 12, 14, 16, 20, …"""
SYNCHRONISED = [7, 8, 9, 10, 12, 14, 16, 20]


def written(model: torch.nn.Module, x_N: Tensor) -> None:
    """Set the parameters to the parts of a flat vector."""
    parameters = list(model.parameters())
    with torch.no_grad():
        for p, part in zip(parameters, x_N.split([p.numel() for p in parameters]), strict=True):
            p.copy_(part.view_as(p))


def zero_one_by_hand(world_size: int, steps: int, decay: float) -> Tensor:
    """The common parameters by the formulas, after a step that synchronises."""
    model = small_model()
    theta_N = flat([p.detach() for p in model.parameters()])
    m_N, v_N = torch.zeros(NUMEL), torch.zeros(NUMEL)
    local = [theta_N.clone() for _ in range(world_size)]
    momenta = [m_N.clone() for _ in range(world_size)]
    gradients_sent: list[list[Tensor]] = []
    changes_sent: list[list[Tensor]] = []
    lr_sum = 0.0

    def gradient(rank: int, step: int) -> Tensor:
        written(model, local[rank])
        backward(model, rank, step - 1)
        return flat([p.grad for p in model.parameters() if p.grad is not None])

    def moved(x_N: Tensor, m_N: Tensor) -> Tensor:
        return x_N * (1 - 0.01 * decay) - 0.01 * m_N / (v_N.sqrt() + 1e-3)

    for step in range(1, steps + 1):
        gradients = [gradient(rank, step) for rank in range(world_size)]
        if step <= 6:
            if step in (1, 2, 4, 6):
                mean_N = sum(gradients[1:], gradients[0]) / world_size
                v_N = 0.999 * v_N + 0.001 * mean_N.square()
            else:
                gradients_sent.append(gradients)
                mean_N = by_hand(gradients_sent, [NUMEL], world_size)[0][-1]
            m_N = 0.9 * m_N + 0.1 * mean_N
            theta_N = moved(theta_N, m_N)
            local, momenta = [theta_N] * world_size, [m_N] * world_size
            continue
        momenta = [0.9 * m_N + 0.1 * each for m_N, each in zip(momenta, gradients, strict=True)]
        local = [moved(x_N, m_N) for x_N, m_N in zip(local, momenta, strict=True)]
        lr_sum += 0.01
        if step in SYNCHRONISED:
            scale_N = v_N.sqrt() + 1e-3
            changes_sent.append([(x_N - theta_N) * scale_N for x_N in local])
            change_N = by_hand(changes_sent, [NUMEL], world_size)[0][-1]
            theta_N = theta_N + change_N / scale_N
            local, momenta = [theta_N] * world_size, [-change_N / lr_sum] * world_size
            lr_sum = 0.0
    return theta_N


def trained(wire: Wire, steps: range, **options: Any) -> tuple[list[Tensor], ZeroOneAdam]:
    model = small_model()
    optimizer = ZeroOneAdam(model.parameters(), wire=wire, **{**OPTIONS, **options})
    for step in steps:
        backward(model, wire.rank, step)
        optimizer.step()
    return [p.detach() for p in model.parameters()], optimizer


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("steps", [5, 16, 20])
def test_it_is_the_formulas(world_size: int, steps: int) -> None:
    expected_N = zero_one_by_hand(world_size, steps, decay=0.1)
    for parameters, _ in simulate(world_size, lambda wire: trained(wire, range(steps), weight_decay=0.1)):
        torch.testing.assert_close(flat(parameters), expected_N, rtol=1e-3, atol=1e-4)


def test_the_ranks_are_equal_after_each_synchronisation_and_in_common_between_them() -> None:
    def work(wire: Wire) -> list[tuple[list[Tensor], list[Tensor]]]:
        model = small_model()
        optimizer = ZeroOneAdam(model.parameters(), wire=wire, **OPTIONS)
        seen = []
        for step in range(20):
            backward(model, wire.rank, step)
            optimizer.step()
            own = [p.detach().clone() for p in model.parameters()]
            with optimizer.common_parameters():
                seen.append((own, [p.detach().clone() for p in model.parameters()]))
            assert all(map(torch.equal, own, model.parameters()))
            optimizer.check_replicas()  # of the common parameters
        return seen

    first, second = simulate(2, work)
    for step, ((ours, common), (theirs, other)) in enumerate(zip(first, second, strict=True), start=1):
        assert all(map(torch.equal, common, other))
        is_common = step <= 6 or step in SYNCHRONISED
        assert all(map(torch.equal, ours, theirs)) == is_common
        assert all(map(torch.equal, ours, common)) == is_common


def test_the_gap_of_refreshes_doubles_after_each_number_of_them() -> None:
    for scaler in (1, 2, 3, 16):  # by the counters of the published code
        gap, counter = 1, 0
        for step in range(1, 1500):
            assert is_refresh(step, scaler) == (step % gap == 0)
            if step % gap == 0:
                counter += 1
                if counter == scaler:
                    gap, counter = 2 * gap, 0


def test_the_gap_of_synchronisations_doubles_up_to_the_clipper() -> None:
    for scaler, clipper in ((1, 16), (5, 12), (3, 1)):
        gap, counter = 1, 0
        for step in range(1, 300):
            assert local_gap(step, scaler, clipper) == gap
            counter += 1
            if counter == scaler:
                gap, counter = min(clipper, 2 * gap), 0
    assert local_gap(10**15, 1, 16) == 16


def test_the_ledger_counts_dense_and_coded_steps_and_nothing_in_local_ones() -> None:
    chunk = 8 * -(-NUMEL // 16)
    dense, coded = {"values": 4 * NUMEL}, {"values": 3 * chunk // 8, "scales": 8}

    def work(wire: Wire) -> list[dict[str, int]]:
        model = small_model()
        optimizer = ZeroOneAdam(model.parameters(), wire=wire, **OPTIONS)
        payloads = []
        for step in range(20):
            before = wire.ledger.copy()
            backward(model, wire.rank, step)
            optimizer.step()
            payloads.append(dict(wire.ledger.since(before).payload))
            assert optimizer.density == float(bool(payloads[-1]))
        return payloads

    for payloads in simulate(2, work):
        for step, payload in enumerate(payloads, start=1):
            expected = dense if step in (1, 2, 4, 6) else coded if step < 7 or step in SYNCHRONISED else {}
            assert payload == expected


@pytest.mark.parametrize("cut", [3, 6, 11, 12])
def test_it_continues_to_the_bit_also_between_two_synchronisations(cut: int) -> None:
    def work(wire: Wire) -> tuple[list[Tensor], list[Tensor]]:
        whole, _ = trained(wire, range(20))
        _, optimizer = trained(wire, range(cut))
        model = small_model()
        other = ZeroOneAdam(model.parameters(), wire=wire, **OPTIONS)
        own = {
            name: x.clone() if isinstance(x, Tensor) else x for name, x in optimizer.own_state_dict().items()
        }
        other.load_state_dict(optimizer.state_dict())
        with optimizer.common_parameters():
            assert all(map(torch.equal, optimizer.parameters, model.parameters()))
        other.load_own_state_dict(own)
        for step in range(cut, 20):
            backward(model, wire.rank, step)
            other.step()
        return whole, [p.detach() for p in model.parameters()]

    for whole, continued in simulate(3, work):
        assert all(map(torch.equal, whole, continued))


def test_without_the_state_of_a_rank_it_continues_from_the_common_parameters() -> None:
    def work(wire: Wire) -> bool:
        _, optimizer = trained(wire, range(11))
        model = small_model()
        other = ZeroOneAdam(model.parameters(), wire=wire, **OPTIONS)
        other.load_state_dict(optimizer.state_dict())
        assert all(map(torch.equal, model.parameters(), optimizer.common))
        with pytest.raises(ValueError, match="the weights of a rank have the shapes"):
            other.load_own_state_dict({"rank": wire.rank, "world_size": 2})
        assert not other.own["lr_sum"].any()
        return torch.equal(other.own["local_exp_avg"], other.m_N)

    assert simulate(2, work) == [True, True]


def test_a_round_without_a_learning_rate_keeps_the_momentum() -> None:
    def work(wire: Wire) -> tuple[Tensor, Tensor]:
        _, optimizer = trained(wire, range(10))
        before_N = optimizer.m_N.clone()
        for group in optimizer.param_groups:
            group["lr"] = 0.0
        for _ in range(2):
            optimizer.step()
        return before_N, optimizer.m_N

    for before_N, after_N in simulate(2, work):
        assert torch.equal(before_N, after_N)


@pytest.mark.parametrize(
    "name", ["freeze_step", "var_update_scaler", "local_step_scaler", "local_step_clipper"]
)
def test_a_number_of_steps_below_one_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} is 0; expected an integer of at least 1"):
        simulate(1, lambda wire: trained(wire, range(0), **{name: 0}))
