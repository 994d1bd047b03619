"""Tests of Dion against the published algorithm in plain code, and of its laws."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sage.comm.threads import simulate
from sage.comm.wire import Wire
from sage.optim.dion import Dion, split_groups

SHAPES = [(12, 32), (5,), (40, 8), (4, 4), (6, 3, 3)]
MATRICES = [0, 2, 3]
"""Of rank fraction 1/4 all are factorised, of 1/2 all but the last, of 1 none."""

Gradients = Callable[[int, int], list[Tensor]]


def parameters() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(1)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def own(rank: int, step: int) -> list[Tensor]:
    """Made-up gradients that differ between ranks."""
    generator = torch.Generator().manual_seed(100 * step + rank)
    return [torch.randn(shape, generator=generator) for shape in SHAPES]


def same(rank: int, step: int) -> list[Tensor]:
    """The same made-up gradients on all ranks."""
    return own(0, step)


def mean_of(world_size: int) -> Gradients:
    """The mean of `own` over ranks."""

    def gradients(rank: int, step: int) -> list[Tensor]:
        return [
            torch.stack(all_W).mean(0)
            for all_W in zip(*(own(other, step) for other in range(world_size)), strict=True)
        ]

    return gradients


def step_from(
    optimizer: Dion, held: Sequence[nn.Parameter], wire: Wire, steps: range, gradients: Gradients
) -> None:
    for step in steps:
        for p, g in zip(held, gradients(wire.rank, step), strict=True):
            p.grad = g
        optimizer.step()


def train(
    wire: Wire, steps: int, *, gradients: Gradients = own, **options: Any
) -> tuple[list[nn.Parameter], Dion]:
    """Take steps with made-up gradients; returns the parameters and the optimiser."""
    held = parameters()
    optimizer = Dion(held, **{"lr": 0.01, "rank_fraction": 0.25, **options}, wire=wire)
    step_from(optimizer, held, wire, range(steps), gradients)
    return held, optimizer


def equal(first: Sequence[Tensor], second: Sequence[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def published(first_q: list[Tensor], steps: int, *, momentum: float, weight_decay: float) -> list[Tensor]:
    """The matrices after steps of the paper's algorithm on one rank, in float64."""
    held = [parameters()[at].detach().double().numpy() for at in MATRICES]
    momenta, q_each = [0 * x for x in held], [q.double().numpy() for q in first_q]
    for step in range(steps):
        for i, at in enumerate(MATRICES):
            m, (rows, columns) = momenta[i] + own(0, step)[at].double().numpy(), held[i].shape
            p = np.linalg.qr(m @ q_each[i])[0]
            r = m.T @ p
            momenta[i] = m - (1 - momentum) * p @ r.T
            q_each[i] = r / np.linalg.norm(r, axis=0)
            update = np.sqrt(rows / columns) * p @ q_each[i].T
            held[i] = (1 - 0.01 * weight_decay) * held[i] - 0.01 * update
    return [torch.from_numpy(x).float() for x in held]


@pytest.mark.parametrize("rank_fraction", [0.25, 0.5, 1.0])
@pytest.mark.parametrize(("momentum", "weight_decay"), [(0.95, 0.0), (0.5, 0.1)])
def test_it_is_the_published_algorithm(rank_fraction: float, momentum: float, weight_decay: float) -> None:
    options: dict[str, Any] = {"momentum": momentum, "weight_decay": weight_decay}

    def work(wire: Wire) -> tuple[list[Tensor], list[Tensor]]:
        held, optimizer = train(wire, 0, rank_fraction=rank_fraction)
        first_q = [optimizer.state[held[at]]["Q"].clone() for at in MATRICES]
        after, _ = train(wire, 6, rank_fraction=rank_fraction, **options)
        return [after[at].detach() for at in MATRICES], first_q

    ((found, first_q),) = simulate(1, work)
    for mine, wanted in zip(found, published(first_q, 6, **options), strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rank_fraction", [0.25, 1.0])
def test_ranks_with_equal_gradients_train_as_one_rank_to_the_bit(rank_fraction: float) -> None:
    def work(wire: Wire) -> list[Tensor]:
        return [p.detach() for p in train(wire, 5, gradients=same, rank_fraction=rank_fraction)[0]]

    (one,) = simulate(1, work)
    for held in simulate(4, work):
        assert equal(held, one)


@pytest.mark.parametrize("rank_fraction", [0.25, 1.0])
def test_ranks_train_as_one_rank_with_their_mean_gradient(rank_fraction: float) -> None:
    def work(gradients: Gradients) -> Callable[[Wire], list[Tensor]]:
        return lambda wire: [
            p.detach() for p in train(wire, 5, gradients=gradients, rank_fraction=rank_fraction)[0]
        ]

    first, *others = simulate(3, work(own))
    assert all(equal(other, first) for other in others)
    (one,) = simulate(1, work(mean_of(3)))
    for mine, wanted in zip(first, one, strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-4, atol=1e-5)


def test_an_update_has_one_orthonormal_factor_and_one_of_unit_columns() -> None:
    def work(wire: Wire) -> list[tuple[Tensor, int]]:
        held, _ = train(wire, 3)
        after, _ = train(wire, 4)
        found = []
        for at, rank in ((0, 3), (2, 2), (3, 1)):
            rows, columns = held[at].shape
            found.append(((held[at] - after[at]).detach() / (0.01 * (rows / columns) ** 0.5), rank))
        return found

    for update, rank in simulate(2, work)[0]:
        torch.testing.assert_close(update.square().sum(), torch.tensor(float(rank)), rtol=1e-3, atol=0)
        assert torch.linalg.matrix_rank(update, rtol=1e-3) == rank


@pytest.mark.parametrize("shape", [(4, 9), (9, 4)])
def test_the_update_of_full_rank_becomes_the_orthonormal_factor_of_the_momentum(
    shape: tuple[int, int],
) -> None:
    torch.manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(n, 4)).Q for n in shape)
    gradient = left @ torch.diag(torch.tensor([8.0, 4.0, 2.0, 1.0])) @ right.T

    def work(wire: Wire) -> Tensor:
        x = nn.Parameter(torch.zeros(shape))
        optimizer, before = Dion([x], lr=1.0, wire=wire), x.detach().clone()
        for _ in range(20):
            before = x.detach().clone()
            x.grad = gradient
            optimizer.step()
        return (before - x.detach()) / (shape[0] / shape[1]) ** 0.5

    (update,) = simulate(1, work)
    torch.testing.assert_close(update, left @ right.T, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rank_fraction", [0.25, 0.5, 1.0])
def test_two_all_reduces_send_four_bytes_an_element_of_the_factors(rank_fraction: float) -> None:
    def work(wire: Wire) -> tuple[list[Tensor], list[Tensor]]:
        held, optimizer = train(wire, 3, rank_fraction=rank_fraction)
        matrices = {
            0.25: 3 * (12 + 32) + 2 * (40 + 8) + 1 * (4 + 4),
            0.5: 6 * (12 + 32) + 4 * (40 + 8) + 4 * 4,
            1.0: 12 * 32 + 40 * 8 + 4 * 4,
        }
        assert optimizer.payload() == {"values": 4 * (matrices[rank_fraction] + 5 + 6 * 3 * 3)}
        assert wire.ledger.payload == {"values": 3 * optimizer.payload()["values"]}
        assert sum(wire.ledger.calls.values()) == (6 if rank_fraction < 1 else 3)
        return [p.detach() for p in held], list(optimizer.own.values())

    (first, momentum), *others = simulate(3, work)
    for held, other_momentum in others:
        assert equal(held, first)
        assert rank_fraction == 1 or not equal(momentum, other_momentum)


def test_a_matrix_is_factorised_only_if_its_factors_have_fewer_elements() -> None:
    def work(wire: Wire) -> list[tuple[int, int]]:
        held = [nn.Parameter(torch.zeros(shape)) for shape in ((4, 4), (3, 6), (8, 4))]
        each = [Dion([p], lr=0.1, rank_fraction=0.5, wire=wire) for p in held]
        return [(x.payload()["values"] // 4, x.own["momentum"].numel()) for x in each]

    assert simulate(1, work) == [[(16, 0), (18, 0), (24, 32)]]


def test_the_other_parameters_are_updated_by_adamw_of_torch_to_the_bit() -> None:
    def work(wire: Wire) -> None:
        held, reference = parameters(), parameters()
        groups = [
            {"params": held[:1]},
            {"params": held[2:3], "algorithm": "adamw", "lr": 0.02, "weight_decay": 0.3},
            {"params": [held[1], *held[3:]], "weight_decay": 0.0},
        ]
        options: dict[str, Any] = {"betas": (0.8, 0.9), "eps": 1e-6}
        optimizer = Dion(groups, lr=0.01, weight_decay=0.1, wire=wire, **options)
        adamw = torch.optim.AdamW(
            [
                {"params": [reference[2]], "lr": 0.02, "weight_decay": 0.3},
                {"params": [reference[1], reference[4]], "weight_decay": 0.0},
            ],
            lr=0.01,
            **options,
        )
        step_from(optimizer, held, wire, range(5), own)
        for step in range(5):
            for p, g in zip(reference, own(0, step), strict=True):
                p.grad = g
            adamw.step()
        assert equal([held[at] for at in (1, 2, 4)], [reference[at] for at in (1, 2, 4)])

    simulate(1, work)


def test_it_continues_from_the_state_of_each_rank_to_the_bit() -> None:
    def work(wire: Wire) -> None:
        whole, _ = train(wire, 5)
        held, optimizer = train(wire, 3)
        other = [nn.Parameter(p.detach().clone()) for p in held]
        resumed = Dion(other, lr=0.5, rank_fraction=0.25, seed=7, wire=wire)
        resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        resumed.load_own_state_dict(copy.deepcopy(optimizer.own_state_dict()))
        step_from(resumed, other, wire, range(3, 5), own)
        assert equal(other, whole)

    simulate(2, work)


def test_the_synchronised_state_is_the_same_on_all_ranks_and_fits_another_number_of_them() -> None:
    def work(wire: Wire) -> tuple[dict[str, Any], list[Tensor], list[Tensor]]:
        held, optimizer = train(wire, 3)
        optimizer.synchronize_for_checkpoint()
        state, before = copy.deepcopy(optimizer.state_dict()), [p.detach().clone() for p in held]
        step_from(optimizer, held, wire, range(3, 5), own)
        return state, before, [p.detach() for p in held]

    (first, before, after), *others = simulate(3, work)
    assert all(equal(after, theirs) for _, _, theirs in others)
    for state, _, _ in others:
        for number, theirs in state["state"].items():
            assert equal(list(theirs.values()), list(first["state"][number].values()))

    def as_one(wire: Wire) -> list[Tensor]:
        held = [nn.Parameter(p.clone()) for p in before]
        optimizer = Dion(held, lr=0.5, rank_fraction=0.25, wire=wire)
        optimizer.load_state_dict(copy.deepcopy(first))
        step_from(optimizer, held, wire, range(3, 5), mean_of(3))
        return [p.detach() for p in held]

    (found,) = simulate(1, as_one)
    whole = simulate(3, lambda wire: [p.detach() for p in train(wire, 5)[0]])[0]
    for mine, other, unsynchronised in zip(found, after, whole, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(other, unsynchronised, rtol=1e-4, atol=1e-5)


def test_groups_are_split_into_matrices_and_other_parameters() -> None:
    held = parameters()
    groups = split_groups([{"params": held[:3], "lr": 0.5}, {"params": held[3:], "algorithm": "adamw"}])
    found = [
        (group["algorithm"], group.get("lr"), [tuple(p.shape) for p in group["params"]]) for group in groups
    ]
    assert found == [
        ("dion", 0.5, [(12, 32), (40, 8)]),
        ("adamw", 0.5, [(5,)]),
        ("adamw", None, [(4, 4), (6, 3, 3)]),
    ]
    named = split_groups([("a", held[0]), ("b", held[1])])
    assert [group["params"][0][0] for group in named] == ["a", "b"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"momentum": 1.0}, r"momentum=1.0: expected 0 or more, and less than 1"),
        ({"rank_fraction": 0.0}, r"rank_fraction=0.0: expected a fraction above 0, at most 1"),
        ({"rank_fraction": 1.5}, r"rank_fraction=1.5: expected a fraction above 0, at most 1"),
    ],
)
def test_an_option_that_is_out_of_range_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        simulate(1, lambda wire: train(wire, 0, **options))


def test_parameters_without_a_matrix_are_refused() -> None:
    with pytest.raises(ValueError, match="Dion has no matrix to update: .* use AdamW"):
        simulate(1, lambda wire: Dion([nn.Parameter(torch.zeros(3))], lr=0.1, wire=wire))
    wrong = [{"params": [nn.Parameter(torch.zeros(3, 3))], "algorithm": "muon"}]
    with pytest.raises(ValueError, match="algorithm='muon' of a group of parameters: expected dion or adamw"):
        simulate(1, lambda wire: Dion(wrong, lr=0.1, wire=wire))
