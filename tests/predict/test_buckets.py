"""The buckets of a prediction are those of the mount for DistributedDataParallel."""

import pytest
import torch
from fuzz import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from sage.mount import buckets as mounted
from sage.predict.buckets import DEFAULT_MB, FIRST_BYTES, cut
from sage.predict.calibration import Parameter

MIB = 1024 * 1024


def parameters(sizes: list[int]) -> tuple[Parameter, ...]:
    return tuple(Parameter(str(i), size, float(i + 1)) for i, size in enumerate(sizes))


@settings(max_examples=examples(100))
@given(
    sizes=st.lists(st.integers(1, 4_000_000), min_size=1, max_size=20),
    mb=st.sampled_from([None, 1.0, 4.0, 25.0]),
)
def test_the_buckets_have_the_elements_of_the_mounts_buckets(sizes: list[int], mb: float | None) -> None:
    named = [(str(i), torch.nn.Parameter(torch.empty(size, device="meta"))) for i, size in enumerate(sizes)]
    cap = int((DEFAULT_MB if mb is None else mb) * MIB)
    expected = [
        sum(p.numel() for _, p in bucket)
        for bucket in mounted.cut(named, FIRST_BYTES if mb in (None, DEFAULT_MB) else cap, cap)
    ]
    found = cut(parameters(sizes[::-1]), mb)
    assert [each.numel for each in found] == expected
    ready = [each.ready_seconds for each in found]
    assert ready == sorted(ready)
    assert ready[-1] == len(sizes)


def test_the_first_bucket_of_ddp_has_a_mebibyte() -> None:
    assert FIRST_BYTES == torch.distributed._DEFAULT_FIRST_BUCKET_BYTES


@pytest.mark.parametrize("mb", [None, 1.0])
def test_a_small_model_is_one_bucket(mb: float | None) -> None:
    assert len(cut(parameters([1000, 2000]), mb)) == 1
