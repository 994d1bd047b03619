"""The scales of microscaled formats: the kernels against their references in plain torch."""
# N = elements of the vector

import random

import pytest
import torch
from vectors import assert_same, draw, team

from sage import ops
from sage.ops import native, reference_microscales

needs_native = pytest.mark.skipif(native.MISSING is not None, reason=f"no extension: {native.MISSING}")
LENGTHS = [0, 1, 5, 16, 33, 512, 4095, 9000, 70_000]


@needs_native
@pytest.mark.parametrize("block", [1, 7, 16, 32, 48, 1000])
def test_the_largest_of_blocks_equal_the_reference(block: int) -> None:
    for case in range(6):
        random.seed(case + block)
        torch.manual_seed(case)
        sizes = [random.choice(LENGTHS) for _ in range(random.randint(0, 5))]
        signal_N, grad_N = draw(sum(sizes)), draw(sum(sizes)) if case % 2 else None
        expected_N = signal_N.clone()
        expected_P = reference_microscales.largest_of_blocks(expected_N, grad_N, sizes, block)
        for threads in (1, 2):
            with team(threads):
                ours_N = signal_N.clone()
                assert_same(ops.largest_of_blocks(grad_N, ours_N, sizes, block), expected_P)
                assert_same(ours_N, expected_N)


def test_a_block_ends_with_its_group_and_a_gradient_alone_is_not_modified() -> None:
    x_N = torch.tensor([1.0, -7.0, 2.0, 5.0, -3.0, torch.inf])
    largest_P = ops.largest_of_blocks(x_N, None, [3, 0, 2, 1], 2)
    assert_same(largest_P, torch.tensor([7.0, 2.0, 5.0, torch.nan]))
    assert x_N.tolist() == [1.0, -7.0, 2.0, 5.0, -3.0, torch.inf]
