"""The scales of microscaled formats: the kernels against their references in plain torch."""
# N = elements of the vector, P = blocks, B = bytes

import random

import pytest
import torch
from vectors import assert_same, draw, team

from sage import ops
from sage.ops import native, reference_levels, reference_microscales

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


@needs_native
def test_the_scales_of_tensors_equal_the_reference() -> None:
    for case in range(24):
        random.seed(case)
        torch.manual_seed(case)
        counts = [random.choice(LENGTHS) for _ in range(random.randint(0, 5))]
        largest_P = ops.largest_of_blocks(draw(sum(counts)), None, counts, 1)
        expected_B, expected_P = reference_microscales.encode_tensor_scales(largest_P, counts)
        for threads in (1, 2):
            with team(threads):
                bytes_B, scale_P = ops.encode_tensor_scales(largest_P, counts)
                assert_same(bytes_B, expected_B)
                assert_same(scale_P, expected_P)
                odd_B = torch.cat((bytes_B[:1], bytes_B))[1:]
                assert_same(ops.decode_tensor_scales(odd_B, counts), expected_P)


@needs_native
@pytest.mark.parametrize("codec", [ops.Codec.E4M3, ops.Codec.E5M2, ops.Codec.E2M1])
def test_codes_by_given_scales_and_the_values_of_one_payload_equal_the_reference(codec: ops.Codec) -> None:
    for case in range(8):
        random.seed(case)
        torch.manual_seed(case)
        sizes = [random.choice([*LENGTHS, 8192]) for _ in range(random.randint(0, 4))]
        coding = ops.Coding(codec, bucket=random.choice([16, 32, 48, 1600]))
        signal_N, scale_P = draw(sum(sizes)), draw(coding.num_buckets(sizes)).abs()
        expected_N, keep = signal_N.clone(), case % 2 == 0
        expected_B = reference_levels.quantise_to(
            expected_N, sizes, coding, scale_P, None, 0, [0], [0], keep=keep
        )
        value_N = reference_levels.average(
            signal_N.clone(), expected_B[None], scale_P[None], sizes, coding, divisor=3, added=keep
        )
        for threads in (1, 2):
            with team(threads):
                ours_N, out_N = signal_N.clone(), signal_N.clone()
                assert_same(ops.quantise_to(ours_N, sizes, coding, scale_P, keep=keep), expected_B)
                assert_same(ours_N, expected_N)
                ops.average(out_N, expected_B[None], scale_P[None], sizes, coding, divisor=3, added=keep)
                assert_same(out_N, value_N)
