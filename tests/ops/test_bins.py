"""Tests of the native ops for AdaComp's bins against their references, bitwise, and of their refusals."""
# N = elements of the vector, K = elements taken, L = layers, B = bins

import random

import pytest
import torch
from torch import Tensor
from vectors import assert_same, draw, seeded

from sage import ops
from sage.ops import native, reference_bins

needs_native = pytest.mark.skipif(native.MISSING is not None, reason=f"no extension: {native.MISSING}")


def drawn_bins(n: int) -> ops.Bins:
    stops = sorted(random.choices(range(n + 1), k=random.choice([0, 1, 5])))
    return ops.Bins((*stops, n), tuple(random.choice([1, 7, 50, 63, 64, 500, 20_000]) for _ in (*stops, n)))


@needs_native
@pytest.mark.parametrize("case", range(40))
@pytest.mark.parametrize("threads", [1, 2])
def test_taking_and_coding_by_bins_equals_the_reference(case: int, threads: int) -> None:
    n = seeded(case)
    bins, weight = drawn_bins(n), random.choice([0.0, 1.0, 1.7, 3.0])
    grad_N, residual_N, scale_L = draw(n), draw(n) if case % 4 else None, draw(len(bins.stops))
    keep, heavy = case % 3 == 0, case % 2 == 0
    seen: list[list[Tensor]] = []
    torch.set_num_threads(threads)
    for takes in (True, False):
        x_N, r_N = grad_N.clone(), None if residual_N is None else residual_N.clone()
        if takes:
            taken = ops.take_near(x_N, r_N, bins, weight, keep=keep, heavy=heavy)
        else:
            signal_N, added_N = (x_N, None) if r_N is None else (r_N, x_N)
            own = keep and r_N is not None
            taken = reference_bins.take_near(signal_N, added_N, bins, weight, keep=own, heavy=heavy)
        values_K, at_K, _, counts_B = taken
        of = ops if takes else reference_bins
        left_N = None if r_N is None else r_N.clone()
        bytes_S = of.encode_bins(left_N, at_K, values_K, counts_B, scale_L, bins)
        seen.append([*taken, x_N, bytes_S, *of.decode_bins(bytes_S, scale_L, bins)])
        seen[-1] += [] if r_N is None or left_N is None else [r_N, left_N]
    torch.set_num_threads(1)
    for ours, theirs in zip(*seen, strict=True):
        assert_same(ours, theirs)
    assert_same(seen[0][4], grad_N)


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 1.0])
@pytest.mark.parametrize("length", [1, 50, 63, 64, 16_383, 16_384])
def test_entries_decode_to_what_was_encoded(length: int, share: float) -> None:
    torch.manual_seed(0)
    bins = ops.Bins((120, 820, 20_862), (50, 500, length))
    at_K = (torch.rand(20_862) < share).nonzero().view(-1).int()
    values_K = torch.randn(at_K.numel())
    starts = torch.cat(
        [torch.arange(0, 120, 50), torch.arange(120, 820, 500), torch.arange(820, 20_862, length)]
    )
    bin_K = torch.searchsorted(starts, at_K.long(), right=True) - 1
    counts_B = torch.bincount(bin_K, minlength=starts.numel()).int()
    scale_L = torch.tensor([1.0, 2.0, 4.0])
    for of in (ops, reference_bins):
        bytes_S = of.encode_bins(None, at_K, values_K, counts_B, scale_L, bins)
        seen_K, seen_at_K = of.decode_bins(bytes_S, scale_L, bins)
        assert torch.equal(seen_at_K, at_K)
        assert torch.equal(seen_K, values_K.sign() * scale_L[ops.layer_of(at_K, bins)])
        for wrong_S in (bytes_S[:-1], torch.cat((bytes_S, bytes_S[-1:]))):
            with pytest.raises(RuntimeError, match=f"bytes: not those of {starts.numel()} bins"):
                of.decode_bins(wrong_S, scale_L, bins)
        if 0 < share < 1:
            with pytest.raises(RuntimeError, match="expected as many in each bin as counts says"):
                of.encode_bins(None, at_K, values_K, counts_B.flip(0), scale_L, bins)
