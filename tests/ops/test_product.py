"""Products with thin matrices, and what a signal keeps: the kernels against their references, to the bit."""
# n, m = rows and columns, r = rank

import math

import pytest
import torch
from vectors import assert_same, draw, seeded, team

from sage import ops
from sage.ops import reference


@pytest.mark.parametrize(
    ("rows", "columns"), [(0, 5), (5, 0), (1, 1), (3, 64), (64, 27), (40, 576), (10, 4611), (1100, 1024)]
)
@pytest.mark.parametrize("rank", [1, 2, 5])
@pytest.mark.parametrize("keeps", [False, True])
def test_the_product_and_the_error_equal_the_reference(
    rows: int, columns: int, rank: int, keeps: bool
) -> None:
    seeded(rows + columns + rank)
    left, right = draw(rows * rank).view(rows, rank), draw(rank * columns).view(columns, rank).T
    signal, out = draw(rows * columns).view(rows, columns), torch.empty(2, rows, columns)
    ours, theirs = signal.clone(), signal.clone()
    ops.write_product(left, right, out[0], ours if keeps else None)
    reference.write_product(left, right, out[1], theirs if keeps else None)
    assert_same(out[0], out[1])
    assert_same(ours, theirs)


@pytest.mark.parametrize(
    ("rows", "columns"), [(1, 1), (3, 64), (64, 27), (77, 576), (10, 4611), (1100, 1024), (200, 16)]
)
@pytest.mark.parametrize("rank", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_product_with_a_thin_matrix_equals_the_reference(
    rows: int, columns: int, rank: int, transposed: bool, threads: int
) -> None:
    seeded(rows + columns + rank)
    matrix = draw(rows * columns).view(rows, columns)
    basis = draw(rank * (rows if transposed else columns)).view(rank, -1).T
    grad = draw(rows * columns).view(rows, columns) if rank != 2 else None
    signal = matrix.clone() if grad is None else matrix + grad
    with team(threads):
        ours = ops.thin_product(matrix, basis, transposed=transposed, grad=grad)
    assert_same(ours, reference.thin_product(signal, basis, transposed=transposed))
    assert_same(matrix, signal)


@pytest.mark.parametrize(("rows", "columns", "rank"), [(130, 700, 5), (0, 4, 2), (4, 0, 2), (4, 3, 0)])
def test_a_product_with_a_thin_matrix_is_that_of_torch(rows: int, columns: int, rank: int) -> None:
    matrix, basis, other = torch.randn(rows, columns), torch.randn(columns, rank), torch.randn(rows, rank)
    close = torch.testing.assert_close
    close(ops.thin_product(matrix, basis), matrix @ basis, rtol=1e-5, atol=1e-4, check_stride=False)
    close(ops.thin_product(matrix, other, transposed=True), matrix.T @ other, rtol=1e-5, atol=1e-4)


def test_the_product_is_that_of_the_matrices() -> None:
    left, right = torch.randn(30, 4), torch.randn(4, 70)
    signal, out = left @ right + 1, torch.empty(30, 70)
    ops.write_product(left, right, out, signal)
    torch.testing.assert_close(out, left @ right)
    torch.testing.assert_close(signal, torch.ones(30, 70))


def test_what_of_the_signal_is_not_finite_becomes_zero() -> None:
    signal, out = torch.tensor([[math.inf, 2.0, math.nan], [3e38, 1.0, 1.0]]), torch.empty(2, 3)
    ops.write_product(torch.tensor([[1.0], [-3e38]]), torch.tensor([[1.0, 0.5, 2.0]]), out, signal)
    assert out[0].tolist() == [1.0, 0.5, 2.0]
    assert out[1, 2] == -math.inf
    assert signal.tolist() == [[0.0, 1.5, 0.0], [0.0, pytest.approx(1.5e38), 0.0]]


def test_matrices_of_another_precision_keep_it() -> None:
    signal, out = torch.tensor([[1e300]], dtype=torch.float64), torch.empty(1, 1, dtype=torch.float64)
    factor = torch.tensor([[1e150]], dtype=torch.float64)
    ops.write_product(factor, factor / 2, out, signal)
    assert out.item() == pytest.approx(5e299)
    assert signal.item() == pytest.approx(5e299)
