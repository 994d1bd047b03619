"""Tests of THC: exact sums of integers, levels, unbiased rounding, and the two exchanges."""
# N = elements of the vector, W = ranks

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from sage import ops
from sage.comm.threads import simulate
from sage.comm.wire import Wire
from sage.ops.reference_integers import unpack_sums
from sage.reducers.thc import Thc, best_levels, norms, part_lengths
from sage.reduction.error_feedback import ErrorFeedback
from sage.reduction.layout import Layout

N = 700


class Recorded(Thc):
    """Records the bytes that this rank sends, and the sums over the ranks."""

    def _sums(self, bytes_WB: Tensor, n: int, wire: Wire) -> tuple[Tensor, int]:
        self.own_WB = bytes_WB.clone()
        self.sum_WB, self.bits = super()._sums(bytes_WB, n, wire)
        return self.sum_WB, self.bits

    def integers(self) -> tuple[Tensor, Tensor]:
        """What this rank sent, as integers, and their sum over the ranks."""
        shares, length = len(self.own_WB), -(-N // len(self.own_WB))
        sums = [unpack_sums(sum_B, self.bits, length, 0, length) for sum_B in self.sum_WB]
        if shares == 1:
            return self.own_WB[0], torch.cat(sums)
        number_N = torch.cat([ops.unpack(row_B, 3, length) for row_B in self.own_WB])
        return torch.tensor(self._levels)[number_N.int()][:N], torch.cat(sums)[:N]


def gradient(rank: int, step: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(100 * step + rank)
    return torch.randn(N, generator=generator) * 10.0**rank


@pytest.mark.parametrize("exchange", ["ps", "all-reduce"])
@pytest.mark.parametrize("granularity", [16, 255])
def test_what_is_decoded_is_the_exact_sum_of_the_integers_of_all_ranks(
    exchange: Any, granularity: int
) -> None:
    def work(wire: Wire) -> tuple[Tensor, Tensor]:
        reducer = Recorded(exchange=exchange, granularity=granularity)
        feedback = ErrorFeedback(reducer, Layout.of([("w", (N,))]))
        for step in range(2):
            feedback(gradient(wire.rank, step), wire)
        return reducer.integers()

    ranks = simulate(3, work)
    own_WN = torch.stack([own_N for own_N, _ in ranks])
    assert int(own_WN.min()) >= 0
    assert int(own_WN.max()) <= granularity
    for _, sum_N in ranks:
        assert torch.equal(sum_N, own_WN.sum(0, dtype=torch.int32))


def test_both_exchanges_have_the_same_mean_to_the_bit() -> None:
    def mean(exchange: Any) -> Tensor:
        def work(wire: Wire) -> Tensor:
            feedback = ErrorFeedback(Thc(exchange=exchange), Layout.of([("w", (N,))]))
            return torch.stack([feedback(gradient(wire.rank, step), wire).mean_N for step in range(2)])

        return simulate(3, work)[0]

    assert torch.equal(mean("ps"), mean("all-reduce"))


def test_the_levels_have_the_least_error_of_all_that_there_are() -> None:
    """Compared with numerical integration over every choice of integers."""
    z_N = torch.linspace(-2, 2, 4001, dtype=torch.float64)
    density_N = torch.exp(-z_N.square() / 2)

    def error(levels: tuple[int, ...]) -> float:
        point = torch.tensor(levels, dtype=torch.float64) * 4 / 9 - 2
        low_N = torch.bucketize(z_N, point, right=True).sub(1).clamp(0, len(levels) - 2)
        return float(((z_N - point[low_N]) * (point[low_N + 1] - z_N) * density_N).sum())

    choices = [(0, *inner, 9) for inner in itertools.combinations(range(1, 9), 3)]
    assert error(best_levels(5, 9, 2.0)) == pytest.approx(min(map(error, choices)), rel=1e-4)
    levels = best_levels(8, 16, 2.154)
    assert levels == tuple(16 - level for level in reversed(levels))
    assert len(set(levels)) == 8


def test_without_clipping_the_mean_is_unbiased() -> None:
    num, x_N = 800, gradient(0)[:48]

    def work(wire: Wire) -> Tensor:
        reducer = Thc(overflow=1e-9, block=16)
        feedback = ErrorFeedback(reducer, Layout.of([("w", (48,))]), memory="none")
        return torch.stack([feedback(x_N.clone(), wire).mean_N for _ in range(num)])

    drawn_DN = simulate(1, work)[0].double()
    error = float(drawn_DN.std(0).max()) / math.sqrt(num)
    assert bool(((drawn_DN.mean(0) - x_N).abs() <= 5 * error).all())


def test_the_norms_are_those_of_the_parts() -> None:
    x_N = torch.randn(100)
    lengths = part_lengths([70, 30], 32)
    assert lengths == [32, 32, 4, 2, 16, 8, 4, 2]
    assert norms(x_N, lengths).tolist() == pytest.approx([float(part.norm()) for part in x_N.split(lengths)])


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"granularity": 256}, "granularity=256: expected 1 to 255"),
        ({"levels": 18}, "levels=18: expected 2 to 17, the granularity plus 1"),
        ({"overflow": 0.0}, "overflow=0.0: expected a probability above 0 and below 1"),
        ({"block": 48}, "block=48: expected a power of two from 16 to 8192"),
        ({"exchange": "ring"}, "exchange='ring': expected ps or all-reduce"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        Thc(**options)
