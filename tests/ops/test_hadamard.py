"""The Hadamard transform: the kernel against its reference, and the laws of an orthonormal matrix."""
# N = elements of the vector, L = elements of a bucket

import random

import pytest
import torch
from fuzz import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from vectors import assert_same, draw, team

from sage import ops
from sage.ops import native, reference_hadamard


@pytest.mark.skipif(native.MISSING is not None, reason=f"no extension: {native.MISSING}")
@pytest.mark.parametrize("bucket", [16, 64, 512, 4096, 8192])
def test_the_transform_equals_the_reference(bucket: int) -> None:
    for case in range(4):
        random.seed(case + bucket)
        torch.manual_seed(case)
        sizes = [random.choice([0, 1, 5, 16, 33, 4095, 9000, 150_000]) for _ in range(random.randint(0, 3))]
        x_N, inverse = draw(sum(sizes)), case % 2 == 0
        expected_N = reference_hadamard.hadamard(x_N.clone(), sizes, bucket, 9, inverse=inverse)
        for threads in (1, 2):
            with team(threads):
                assert_same(ops.hadamard(x_N.clone(), sizes, bucket, key=9, inverse=inverse), expected_N)


@settings(max_examples=examples(15), deadline=None)
@given(
    st.lists(st.integers(0, 700), min_size=1, max_size=3), st.sampled_from([16, 128, 256]), st.integers(0, 9)
)
def test_the_inverse_undoes_it_and_the_norm_is_kept(sizes: list[int], bucket: int, key: int) -> None:
    x_N = torch.randn(sum(sizes), generator=torch.Generator().manual_seed(key))
    y_N = ops.hadamard(x_N.clone(), sizes, bucket, key=key)
    torch.testing.assert_close(y_N.norm(), x_N.norm())
    back_N = ops.hadamard(y_N, sizes, bucket, key=key, inverse=True)
    torch.testing.assert_close(back_N, x_N, rtol=0, atol=2e-6)


def test_the_matrix_is_sylvesters_with_signs_by_column() -> None:
    matrix_LL = torch.stack([ops.hadamard(e_L, [64], 64, key=3) for e_L in torch.eye(64)], 1) * 8
    assert torch.equal(matrix_LL @ matrix_LL.T, 64 * torch.eye(64))
    sign_L = matrix_LL[0]
    assert set(sign_L.tolist()) == {-1.0, 1.0}
    sylvester = torch.ones(1, 1)
    while len(sylvester) < 64:
        sylvester = torch.cat((torch.cat((sylvester, sylvester), 1), torch.cat((sylvester, -sylvester), 1)))
    assert torch.equal(matrix_LL, sylvester * sign_L)


def test_an_outlier_is_spread_evenly_over_its_bucket_and_no_further() -> None:
    x_N = torch.zeros(200)
    x_N[70] = 12.0  # of the second bucket of the first group
    y_N = ops.hadamard(x_N, [130, 70], 64, key=1)
    assert torch.equal(y_N.abs(), torch.where((torch.arange(200) // 64) == 1, 1.5, 0.0))


def test_signs_depend_on_the_key_and_on_the_place() -> None:
    first_N, other_N = (ops.hadamard(torch.ones(4096), [4096], 64, key=key) for key in (1, 2))
    assert not torch.equal(first_N, other_N)
    assert not torch.equal(first_N[:64], first_N[64:128])
