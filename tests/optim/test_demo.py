"""Tests of DeMo against the published algorithm in plain code, and of its laws."""

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from scipy.fft import dctn, idctn
from torch import Tensor, nn

from sage.comm.threads import simulate
from sage.comm.wire import Wire
from sage.optim.demo import DeMo

SHAPES = [(32, 48), (5,), (64,), (6, 3, 3, 3), (1, 7)]


def parameters() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(1)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def gradients(rank: int, step: int) -> list[Tensor]:
    """The made-up gradients of one rank: half is the same on all ranks."""
    own = torch.Generator().manual_seed(100 * step + rank + 1)
    common = torch.Generator().manual_seed(100 * step)
    return [torch.randn(shape, generator=own) + torch.randn(shape, generator=common) for shape in SHAPES]


def train(wire: Wire, steps: int, **options: Any) -> tuple[list[Tensor], DeMo]:
    """Take steps with made-up gradients; returns the parameters and the optimiser."""
    held = parameters()
    optimizer = DeMo(held, **{"lr": 0.01, **options}, wire=wire)
    for step in range(steps):
        set_gradients(held, gradients(wire.rank, step))
        optimizer.step()
    return [p.detach() for p in held], optimizer


def set_gradients(held: Sequence[nn.Parameter], values: Sequence[Tensor]) -> None:
    for p, g in zip(held, values, strict=True):
        p.grad = g.clone()


@pytest.mark.parametrize("world_size", [1, 3])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_with_all_coefficients_and_no_momentum_it_is_signsgd_of_the_mean_gradient(
    world_size: int, weight_decay: float
) -> None:
    options: dict[str, Any] = {"decay": 0.0, "k": 4096, "values": "fp32", "weight_decay": weight_decay}
    results = simulate(world_size, lambda wire: train(wire, 3, **options)[0])
    by_hand, is_clear = parameters(), [torch.ones(shape, dtype=torch.bool) for shape in SHAPES]
    for step in range(3):
        per_rank = [gradients(rank, step) for rank in range(world_size)]
        for p, near, *all_W in zip(by_hand, is_clear, *per_rank, strict=True):
            mean = torch.stack(all_W).mean(0)
            p.data = (1 - 0.01 * weight_decay) * p.data - 0.01 * mean.sign()
            near &= mean.abs() > 1e-5  # what is smaller is less than the values' rounding
    for mine, p, near in zip(results[0], by_hand, is_clear, strict=True):
        assert near.float().mean() > 0.98
        torch.testing.assert_close(mine[near], p.detach()[near], rtol=0, atol=1e-6)


def published(world_size: int, steps: int, k: int) -> tuple[list[Tensor], list[Tensor]]:
    """The paper's algorithm with a momentum of elements and loops over tiles of the edge 16, on all ranks.

    Returns the parameters, and where no update was so near 0 that rounding could change its sign.
    """
    held = [p.detach().double().numpy() for p in parameters()]
    clear = [torch.ones(shape, dtype=torch.bool) for shape in SHAPES]
    deltas = [[0 * x for x in held] for _ in range(world_size)]
    for step in range(steps):
        for number, x in enumerate(held):
            matrix = (x.shape[0], x.size // x.shape[0]) if x.ndim > 1 else (1, x.size)
            h, w = (next(e for e in range(min(n, 16), 0, -1) if n % e == 0) for n in matrix)
            total, count = torch.zeros(matrix, dtype=torch.float64), torch.zeros(matrix)
            for rank in range(world_size):
                delta = deltas[rank][number]
                delta *= 0.9
                delta += 0.01 * gradients(rank, step)[number].double().numpy()
                for y in range(0, matrix[0], h):
                    for z in range(0, matrix[1], w):
                        tile = delta.reshape(matrix)[y : y + h, z : z + w]
                        c = torch.from_numpy(dctn(tile, norm="ortho"))
                        at = c.abs().view(-1).topk(min(k, h * w)).indices
                        kept = torch.zeros_like(c)
                        kept.view(-1)[at] = c.reshape(-1)[at]
                        tile -= idctn(kept.numpy(), norm="ortho")
                        total[y : y + h, z : z + w] += kept
                        sent = torch.zeros(h * w)
                        sent[at] = 1
                        count[y : y + h, z : z + w] += sent.view(h, w)
            mean = (total / count.clamp(min=1)).numpy()
            for y in range(0, matrix[0], h):
                for z in range(0, matrix[1], w):
                    mean[y : y + h, z : z + w] = idctn(mean[y : y + h, z : z + w], norm="ortho")
            update = torch.from_numpy(mean.reshape(x.shape))
            clear[number] &= update.abs() > 1e-5
            held[number] = x - 0.01 * update.sign().numpy()
    return [torch.from_numpy(x) for x in held], clear


@pytest.mark.parametrize("world_size", [1, 3])
def test_it_is_the_published_algorithm(world_size: int) -> None:
    options: dict[str, Any] = {"decay": 0.9, "k": 6, "edge": 16, "values": "fp32"}
    results = simulate(world_size, lambda wire: train(wire, 4, **options)[0])
    for mine, wanted, clear in zip(results[0], *published(world_size, 4, 6), strict=True):
        assert clear.float().mean() > 0.9
        torch.testing.assert_close(mine[clear].double(), wanted[clear], rtol=0, atol=1e-6)


@pytest.mark.parametrize("values", ["bf16", "fp32"])
def test_all_ranks_have_the_same_parameters_to_the_bit_and_send_what_is_stated(values: str) -> None:
    def work(wire: Wire) -> tuple[list[Tensor], list[Tensor]]:
        held, optimizer = train(wire, 5, values=values, k=7)
        assert wire.ledger.payload == {kind: 5 * size for kind, size in optimizer.payload().items()}
        assert sum(wire.ledger.calls.values()) == 5
        return held, [optimizer.own["delta"]]

    (first, momenta), *others = simulate(4, work)
    for held, theirs in others:
        assert all(torch.equal(mine, other) for mine, other in zip(first, held, strict=True))
        assert not torch.equal(momenta[0], theirs[0])


def test_the_running_average_makes_the_same_updates_at_a_constant_learning_rate() -> None:
    options: dict[str, Any] = {"decay": 0.875, "lr": 0.125, "values": "fp32", "k": 4}
    summed = simulate(2, lambda wire: train(wire, 4, **options)[0])[0]
    averaged = simulate(2, lambda wire: train(wire, 4, average=True, **options)[0])[0]
    assert all(torch.equal(mine, other) for mine, other in zip(summed, averaged, strict=True))


def test_it_continues_from_its_state_to_the_bit() -> None:
    def work(wire: Wire) -> tuple[list[Tensor], list[Tensor]]:
        whole, _ = train(wire, 5)
        held, optimizer = train(wire, 3)
        other = [nn.Parameter(p.clone()) for p in held]
        resumed = DeMo(other, lr=0.5, wire=wire)
        resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        resumed.load_own_state_dict(copy.deepcopy(optimizer.own_state_dict()))
        for step in (3, 4):
            set_gradients(other, gradients(wire.rank, step))
            resumed.step()
        return whole, [p.detach() for p in other]

    for whole, other in simulate(2, work):
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(whole, other, strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decay": 1.0}, r"decay=1.0: expected 0 or more, and less than 1"),
        ({"k": 0}, r"k=0: expected a number of coefficients, 1 or more"),
        ({"edge": 257}, r"edge=257: expected the edge of a tile, 1 to 256"),
        ({"values": "fp16"}, r"values='fp16': expected bf16 or fp32"),
    ],
)
def test_an_option_that_is_out_of_range_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        simulate(1, lambda wire: train(wire, 0, **options))
