"""Tests of 1-bit Adam against plain code and torch's Adam, of its state and of its bytes."""
# N = elements of all parameters, W = ranks

from collections.abc import Callable
from typing import Any

import pytest
import torch
from gloo import processes
from one_bit_by_hand import by_hand
from torch import Tensor, nn

from sage.comm.threads import simulate
from sage.comm.wire import Wire
from sage.optim import OneBitAdam

NUMEL = 4 * 3 + 3 + 3 * 2


def small_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2, bias=False))


def backward(model: nn.Module, rank: int, step: int) -> None:
    """Compute the gradient of a rank's batch."""
    generator = torch.Generator().manual_seed(100 * step + rank)
    model.zero_grad()
    model(torch.randn(6, 4, generator=generator)).square().sum().backward()


def trained(
    make: Callable[..., torch.optim.Optimizer], rank: int, steps: range, **options: Any
) -> tuple[list[Tensor], torch.optim.Optimizer]:
    model = small_model()
    optimizer = make(model.parameters(), lr=0.01, **options)
    for step in steps:
        backward(model, rank, step)
        optimizer.step()
    return [p.detach() for p in model.parameters()], optimizer


def flat(parts: list[Tensor]) -> Tensor:
    return torch.cat([part.reshape(-1) for part in parts])


def adam_by_hand(world_size: int, steps: int, freeze_step: int, decay: float) -> Tensor:
    """The parameters of 1-bit Adam by the formulas, each rank's gradient at the common parameters."""
    model = small_model()
    parameters = list(model.parameters())
    m_N, v_N = torch.zeros(NUMEL), torch.zeros(NUMEL)
    rows: list[list[Tensor]] = []
    for step in range(steps):
        gradients = []
        for rank in range(world_size):
            backward(model, rank, step)
            gradients.append(flat([p.grad for p in parameters if p.grad is not None]))
        if step < freeze_step:
            mean_N = sum(gradients[1:], gradients[0]) / world_size
            m_N = m_N.lerp(mean_N, 1 - 0.9)
            v_N = (v_N * 0.999).addcmul(mean_N, mean_N, value=1 - 0.999)
        else:
            rows.append([m_N.lerp(gradient, 1 - 0.9) for gradient in gradients])
            m_N = by_hand(rows, [NUMEL], world_size)[0][-1]
        theta_N = flat([p.detach() for p in parameters])
        theta_N = (theta_N * (1 - 0.01 * decay)).addcdiv(m_N, v_N.sqrt() + 1e-8, value=-0.01)
        with torch.no_grad():
            for p, part in zip(parameters, theta_N.split([p.numel() for p in parameters]), strict=True):
                p.copy_(part.view_as(p))
    return flat([p.detach() for p in parameters])


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_until_the_freeze_it_is_adam_of_the_mean_gradient_to_the_bit(world_size: int) -> None:
    def work(wire: Wire) -> Tensor:
        return flat(trained(OneBitAdam, wire.rank, range(10), freeze_step=10, weight_decay=0.1, wire=wire)[0])

    expected_N = adam_by_hand(world_size, 10, 10, decay=0.1)
    for ours_N in simulate(world_size, work):
        assert torch.equal(ours_N, expected_N)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_with_bias_correction_it_is_adamw_of_torch_to_the_bit_until_the_freeze(weight_decay: float) -> None:
    """The gradients of both ranks are equal, so that the optimiser of torch needs no communication."""

    def work(wire: Wire) -> list[Tensor]:
        options: dict[str, Any] = {"freeze_step": 50, "bias_correction": True, "weight_decay": weight_decay}
        return trained(OneBitAdam, 0, range(50), wire=wire, **options)[0]

    theirs = trained(torch.optim.AdamW, 0, range(50), weight_decay=weight_decay, foreach=False)[0]
    for ours in simulate(2, work):
        assert all(map(torch.equal, ours, theirs))


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_after_the_freeze_it_is_the_published_update_and_equal_on_all_ranks(world_size: int) -> None:
    def work(wire: Wire) -> Tensor:
        return flat(trained(OneBitAdam, wire.rank, range(12), freeze_step=4, wire=wire)[0])

    ours = simulate(world_size, work)
    assert all(torch.equal(each_N, ours[0]) for each_N in ours)
    torch.testing.assert_close(ours[0], adam_by_hand(world_size, 12, 4, decay=0.0), rtol=1e-4, atol=1e-5)


def test_the_second_moment_is_frozen() -> None:
    def work(wire: Wire) -> tuple[Tensor, Tensor]:
        before = trained(OneBitAdam, wire.rank, range(4), freeze_step=4, wire=wire)[1]
        after = trained(OneBitAdam, wire.rank, range(9), freeze_step=4, wire=wire)[1]
        assert isinstance(before, OneBitAdam)
        assert isinstance(after, OneBitAdam)
        return before.v_N, after.v_N

    for before_N, after_N in simulate(2, work):
        assert torch.equal(before_N, after_N)


def test_a_parameter_without_a_gradient_until_the_freeze_does_not_move_after_it() -> None:
    def work(wire: Wire) -> tuple[Tensor, Tensor]:
        model = nn.ParameterList([nn.Parameter(torch.ones(5)), nn.Parameter(torch.ones(20))])
        optimizer = OneBitAdam(model.parameters(), lr=0.1, freeze_step=2, wire=wire)
        for _ in range(6):
            optimizer.zero_grad()
            (model[0] * torch.arange(5)).sum().backward()  # the first element never has a gradient
            optimizer.step()
        return model[0].detach(), model[1].detach()

    for used_N, unused_N in simulate(2, work):
        assert torch.equal(unused_N, torch.ones(20))
        assert used_N[0] == 1
        assert bool((used_N[1:] < 0.9).all())


@pytest.mark.parametrize("world_size", [2, 3])
def test_the_ledger_is_dense_until_the_freeze_and_a_bit_each_way_after_it(world_size: int) -> None:
    chunk = 8 * -(-NUMEL // (8 * world_size))

    def work(wire: Wire) -> list[dict[str, int]]:
        model = small_model()
        optimizer = OneBitAdam(model.parameters(), freeze_step=1, wire=wire)
        payloads = []
        for step in range(2):
            before = wire.ledger.copy()
            backward(model, wire.rank, step)
            optimizer.step()
            payloads.append(dict(wire.ledger.since(before).payload))
        assert optimizer.last_step.payload_bytes == sum(payloads[1].values())
        assert optimizer.total.dense_bytes == 2 * 4 * NUMEL
        return payloads

    for payloads in simulate(world_size, work):
        assert payloads == [{"values": 4 * NUMEL}, {"values": (world_size + 1) * chunk // 8, "scales": 8}]


# State.


@pytest.mark.parametrize("cut", [2, 4, 7])
def test_it_continues_to_the_bit_from_the_state_of_all_ranks_and_that_of_its_own(cut: int) -> None:
    def work(wire: Wire) -> tuple[list[Tensor], list[Tensor]]:
        whole = trained(OneBitAdam, wire.rank, range(10), freeze_step=4, wire=wire)[0]
        first, optimizer = trained(OneBitAdam, wire.rank, range(cut), freeze_step=4, wire=wire)
        assert isinstance(optimizer, OneBitAdam)
        shared, own = optimizer.state_dict(), optimizer.own_state_dict()
        model = small_model()
        with torch.no_grad():
            for p, x in zip(model.parameters(), first, strict=True):
                p.copy_(x)
        other = OneBitAdam(model.parameters(), lr=7.0, freeze_step=4, wire=wire)
        other.load_state_dict(shared)
        other.load_own_state_dict(own)
        for step in range(cut, 10):
            backward(model, wire.rank, step)
            other.step()
        return whole, [p.detach() for p in model.parameters()]

    for whole, continued in simulate(3, work):
        assert all(map(torch.equal, whole, continued))


def test_the_shared_state_is_equal_on_all_ranks_and_resets_that_of_a_rank() -> None:
    def work(wire: Wire) -> tuple[dict[str, Any], float]:
        optimizer = trained(OneBitAdam, wire.rank, range(6), freeze_step=4, wire=wire)[1]
        assert isinstance(optimizer, OneBitAdam)
        assert float(optimizer.own["worker_error"].abs().sum()) > 0
        state = optimizer.state_dict()
        optimizer.load_state_dict(state)
        return state["state"], float(sum(x.abs().sum() for x in optimizer.own.values()))

    (first, _), (second, left) = simulate(2, work)
    assert left == 0
    for number, state in first.items():
        assert state.keys() == {"step", "exp_avg", "exp_avg_sq"}
        assert all(torch.equal(x, second[number][name]) for name, x in state.items())


def test_the_state_of_another_rank_or_model_is_refused() -> None:
    def work(wire: Wire) -> None:
        optimizer = OneBitAdam(small_model().parameters(), freeze_step=4, wire=wire)
        with pytest.raises(ValueError, match="'rank': 9.*expected .*'rank': 0"):
            optimizer.load_own_state_dict({**optimizer.own_state_dict(), "rank": 9})
        other = OneBitAdam(nn.Linear(4, 4).parameters(), freeze_step=4, wire=wire)
        with pytest.raises(ValueError, match="the state of parameter 0 has the shapes"):
            other.load_state_dict(optimizer.state_dict())

    simulate(1, work)


# Use.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"freeze_step": 0}, "freeze_step is 0; expected an integer of at least 1"),
        ({"freeze_step": 1, "lr": -1.0}, "lr is -1.*at least 0"),
        ({"freeze_step": 1, "betas": (0.9, 1.0)}, "two numbers from 0 to below 1"),
        ({"freeze_step": 1, "eps": 0.0}, "eps is 0.*above 0"),
        ({"freeze_step": 1, "weight_decay": -0.1}, "weight_decay is -0.1"),
        ({"freeze_step": 1, "grouping": "row"}, "grouping is 'row'; expected model or layer"),
    ],
)
def test_an_option_out_of_range_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        simulate(1, lambda wire: OneBitAdam(small_model().parameters(), wire=wire, **options))


def test_parameters_that_do_not_fit_are_refused() -> None:
    def made(*parameters: nn.Parameter) -> None:
        named = list(zip("wx", parameters, strict=False))
        simulate(1, lambda wire: OneBitAdam(named, freeze_step=1, wire=wire))

    with pytest.raises(ValueError, match="'w' is torch.float64; expected torch.float32"):
        made(nn.Parameter(torch.ones(2, dtype=torch.float64)))
    with pytest.raises(ValueError, match="the elements of 'w' share memory"):
        made(nn.Parameter(torch.ones(1).expand(3)))
    with pytest.raises(ValueError, match="on several devices .* expected one"):
        made(nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1, device="meta")))


def test_no_parameters_are_added_later() -> None:
    def work(wire: Wire) -> None:
        optimizer = OneBitAdam(small_model().parameters(), freeze_step=1, wire=wire)
        with pytest.raises(ValueError, match="takes no further parameters"):
            optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))]})

    simulate(1, work)


def test_a_sparse_gradient_is_refused_and_a_closure_is_called() -> None:
    def work(wire: Wire) -> None:
        layer = nn.Embedding(4, 3, sparse=True)
        optimizer = OneBitAdam(layer.parameters(), freeze_step=1, wire=wire)
        layer(torch.tensor([1])).sum().backward()
        with pytest.raises(ValueError, match=r"shape \[4, 3\] has a sparse gradient: set sparse=False"):
            optimizer.step()
        p = nn.Parameter(torch.ones(2))
        optimizer = OneBitAdam([p], lr=0.1, freeze_step=1, wire=wire)

        def closure() -> Tensor:
            optimizer.zero_grad()
            (loss := p.square().sum()).backward()
            return loss

        assert optimizer.step(closure).item() == 2
        assert bool((p < 1).all())

    simulate(1, work)


def test_a_script_copies_the_first_ranks_parameters_and_skips_together() -> None:
    """A plain script on two processes: the wire of its own, GradScaler, and a gradient that is not finite."""

    def work(wire: Wire) -> tuple[list[Tensor], list[bool], float]:
        torch.manual_seed(wire.rank)
        model = nn.Linear(4, 3)
        optimizer = OneBitAdam(model.named_parameters(), lr=0.01, freeze_step=2)
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
        skipped = []
        for step in range(5):
            optimizer.zero_grad()
            loss = model(torch.ones(2, 4) * (1 + wire.rank)).square().sum()
            scaler.scale(loss * (float("inf") if step == 3 and wire.rank == 1 else 1.0)).backward()
            scaler.step(optimizer)
            scaler.update()
            skipped.append(bool(optimizer.last_step.skipped))
        optimizer.check_replicas()
        optimizer.zero_grad()
        (model(torch.ones(2, 4)).sum() * (float("nan") if wire.rank else 1.0)).backward()
        with pytest.raises(ValueError, match="the gradient of 1 of 2 ranks is not finite at step 5"):
            optimizer.step()
        optimizer.close()
        return [p.detach() for p in model.parameters()], skipped, float(optimizer.num_steps)

    outcomes = processes(2, work)
    assert all(map(torch.equal, outcomes[0][0], outcomes[1][0]))
    for _, skipped, num_steps in outcomes:
        assert skipped == [False, False, False, True, False]
        assert num_steps == 4


def test_ranks_with_different_options_are_refused() -> None:
    def work(wire: Wire) -> str:
        try:
            OneBitAdam(small_model().parameters(), freeze_step=1 + wire.rank)
        except ValueError as error:
            return str(error)
        return ""

    for text in processes(2, work):
        assert "rank 0 has OneBitAdam({'freeze_step': 1" in text
        assert "rank 1 has" in text
