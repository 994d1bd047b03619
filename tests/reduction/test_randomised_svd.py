"""The randomised SVD: what it is made of, its error, and what the methods that use it send."""
# n, m = rows and columns of a matrix, l = columns of its random test matrix

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from sage import registry
from sage.reduction import randomised_svd
from sage.reduction.randomised_svd import normal
from sage.testing.harness import Case, same_bits, steps


def matrix(rows: int, columns: int, values: list[float], seed: int = 0) -> Tensor:
    """A matrix with these singular values (float64)."""
    dice = torch.Generator().manual_seed(seed)
    u, v = (
        torch.linalg.qr(torch.randn(n, len(values), generator=dice, dtype=torch.float64)).Q
        for n in (rows, columns)
    )
    return u * torch.tensor(values, dtype=torch.float64) @ v.T


DECAYING = [0.8**j for j in range(30)]
SHAPES = [(40, 30), (30, 40), (30, 30)]


@pytest.mark.parametrize(("rows", "columns"), SHAPES)
@pytest.mark.parametrize("power_iterations", [0, 2])
def test_vectors_are_orthonormal_and_values_descend(rows: int, columns: int, power_iterations: int) -> None:
    a = matrix(rows, columns, DECAYING)
    u, s_l, vt = randomised_svd(a, 8, power_iterations=power_iterations, key=3)
    torch.testing.assert_close(u.T @ u, torch.eye(8, dtype=torch.float64))
    torch.testing.assert_close(vt @ vt.T, torch.eye(8, dtype=torch.float64))
    assert bool((s_l.diff() <= 0).all())
    # A projection shortens: no value exceeds the exact one, and the rest is orthogonal to what was found.
    assert bool((s_l <= torch.linalg.svdvals(a)[:8] * (1 + 1e-12)).all())
    assert float((u.T @ (a - u * s_l @ vt)).abs().max()) < 1e-12


@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_a_matrix_of_low_rank_is_decomposed_exactly(rows: int, columns: int) -> None:
    a = matrix(rows, columns, [5.0, 3.0, 2.0, 0.5])
    u, s_l, vt = randomised_svd(a, 6, power_iterations=0, key=1)
    torch.testing.assert_close(s_l, torch.tensor([5.0, 3.0, 2.0, 0.5, 0.0, 0.0], dtype=torch.float64))
    torch.testing.assert_close(u * s_l @ vt, a)
    exact_u, _, exact_vt = torch.linalg.svd(a, full_matrices=False)
    for found, exact in ((u.T, exact_u.T), (vt, exact_vt)):
        torch.testing.assert_close((found[:4] * exact[:4]).sum(1).abs(), torch.ones(4, dtype=torch.float64))


@pytest.mark.parametrize(("k", "p"), [(2, 2), (4, 4), (4, 10)])
def test_the_mean_error_is_within_the_bounds_of_theorems_10_5_and_10_6(k: int, p: int) -> None:
    a = matrix(40, 30, DECAYING)
    errors = []
    for key in range(200):
        u, s_l, vt = randomised_svd(a, k + p, power_iterations=0, key=key)
        left = a - u * s_l @ vt
        errors.append((float(left.norm()), float(torch.linalg.matrix_norm(left, 2))))
    frobenius, spectral = (sum(each) / len(errors) for each in zip(*errors, strict=True))
    tail = math.sqrt(sum(value**2 for value in DECAYING[k:]))
    least = math.sqrt(sum(value**2 for value in DECAYING[k + p :]))
    assert least <= frobenius <= math.sqrt(1 + k / (p - 1)) * tail
    bound = (1 + math.sqrt(k / (p - 1))) * DECAYING[k] + math.e * math.sqrt(k + p) / p * tail
    assert DECAYING[k + p] <= spectral <= bound


def test_power_iterations_reduce_the_error() -> None:
    a = matrix(40, 30, DECAYING)

    def error(power_iterations: int) -> float:
        found = (randomised_svd(a, 6, power_iterations=power_iterations, key=key) for key in range(20))
        return sum(float((a - u * s_l @ vt).norm()) for u, s_l, vt in found)

    least = 20 * math.sqrt(sum(value**2 for value in DECAYING[6:]))
    assert least <= error(3) < error(1) < error(0)
    assert error(3) < 1.05 * least


def test_the_test_matrix_is_normal_and_depends_only_on_its_key() -> None:
    like = torch.empty(0, dtype=torch.float64)
    x = normal(200, 300, 7, like=like)
    assert same_bits(x, normal(200, 300, 7, like=like))
    assert not same_bits(x, normal(200, 300, 8, like=like))
    assert x.isfinite().all()
    assert abs(float(x.mean())) < 5 / math.sqrt(x.numel())
    assert float(x.square().mean()) == pytest.approx(1, abs=5 * math.sqrt(2 / x.numel()))
    below = float((x < 1).double().mean())
    assert below == pytest.approx(0.841345, abs=5 * math.sqrt(0.13 / x.numel()))


TALL = (("w", (60, 50)), ("b", (7,)))


def left_of(name: str, **options: Any) -> list[Tensor]:
    """What each of two ranks' residual keeps of a matrix with decaying singular values, in the first step."""
    signal = torch.cat([matrix(60, 50, [3 * value for value in DECAYING]).view(-1), torch.ones(7)]).float()
    case = Case(registry.load("reducers", name), options, 2, memory="residual")
    seen = steps(case, lambda rank, step: signal / (1 + rank), count=1, shapes=TALL)
    lefts = [result[0].left_N for result in seen]
    assert all(left_N is not None for left_N in lefts)
    return [left_N for left_N in lefts if left_N is not None]


def test_svd_leaves_little_more_with_a_randomised_decomposition_than_with_the_exact_one() -> None:
    exact = left_of("svd", rank=4)
    randomised = left_of("svd", rank=4, decomposition="randomised", oversampling=4)
    for best_N, found_N in zip(exact, randomised, strict=True):
        assert not same_bits(best_N, found_N)
        assert float(best_N.norm()) * (1 - 1e-6) <= float(found_N.norm()) < 1.02 * float(best_N.norm())


def test_with_as_many_values_as_the_matrix_has_the_decomposition_is_the_exact_one() -> None:
    exact = left_of("svd", rank=4)
    for best_N, found_N in zip(
        exact, left_of("svd", rank=4, decomposition="randomised", oversampling=46), strict=True
    ):
        assert same_bits(best_N, found_N)


@pytest.mark.parametrize("name", ["svd", "atomo"])
def test_every_step_has_another_test_matrix(name: str) -> None:
    options = {"rank": 2, "decomposition": "randomised", "oversampling": 1, "power_iterations": 0}
    case = Case(registry.load("reducers", name), options, 1, memory="none")
    signal_N = matrix(60, 50, DECAYING).float().view(-1)
    seen = steps(case, lambda rank, step: signal_N, count=3, shapes=TALL[:1])
    means = [step.mean_N for step in seen[0]]
    assert not same_bits(means[0], means[1])
    assert not same_bits(means[1], means[2])


def test_atomo_is_right_on_average_for_a_matrix_whose_values_are_all_found() -> None:
    options = {"rank": 2, "decomposition": "randomised", "oversampling": 2}
    signal_N, draws = matrix(60, 50, [4.0, 2.0, 1.0, 0.5]).float().view(-1), 400
    case = Case(registry.load("reducers", "atomo"), options, 1, memory="none")
    seen = steps(case, lambda rank, step: signal_N, count=draws, shapes=TALL[:1])
    mean_N = torch.stack([step.mean_N for step in seen[0]]).mean(0)
    # p = 1, 4/7, 2/7 and 1/7: the variance is Σ σ²·(1/p − 1).
    variance = 4 * 0.75 + 2.5 + 0.25 * 6
    assert float((mean_N - signal_N).norm()) < 3 * math.sqrt(variance / draws)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"decomposition": "random"}, r"decomposition='random': expected exact or randomised"),
        ({"oversampling": -1}, r"oversampling=-1: expected 0 or more"),
        ({"power_iterations": -1}, r"power_iterations=-1: expected 0 or more"),
    ],
)
@pytest.mark.parametrize("name", ["svd", "atomo"])
def test_an_option_out_of_range_is_refused(name: str, options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        registry.load("reducers", name)(**options)
