"""What a signal keeps of itself when something was sent: the kernel against its reference, to the bit."""
# N = elements of the vector

import math

import pytest
import torch
from vectors import assert_same, draw, seeded

from sage import ops
from sage.ops import reference


@pytest.mark.parametrize("case", range(10))
def test_the_error_equals_the_reference(case: int) -> None:
    n = seeded(case)
    signal_N, sent_N = draw(n), draw(n)
    ours_N, theirs_N, before_N = signal_N.clone(), signal_N.clone(), sent_N.clone()
    ops.keep_error(ours_N, sent_N)
    reference.keep_error(theirs_N, sent_N)
    assert_same(ours_N, theirs_N)
    assert_same(sent_N, before_N)


def test_a_matrix_that_is_not_finite_leaves_no_residual() -> None:
    signal = torch.tensor([[3.0, math.inf, math.nan], [1.0, -2.0, 3e38]])
    ops.keep_error(signal, torch.tensor([[1.0, 1.0, 1.0], [math.inf, -2.0, -3e38]]))
    assert signal.tolist() == [[2.0, 0.0, 0.0], [0.0, 0.0, 0.0]]


def test_vectors_of_another_precision_keep_it() -> None:
    signal_N = torch.tensor([1.0, 1e300], dtype=torch.float64)
    ops.keep_error(signal_N, torch.tensor([0.5, 1e299], dtype=torch.float64))
    assert signal_N.tolist() == [0.5, 9e299]
