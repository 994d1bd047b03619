"""Tests of the native ops against their references, bitwise; their refusals; and torch's requirements."""
# N = elements of the vector, K = elements taken, M = elements of all ranks together

import math
import os
import random
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from vectors import assert_same, draw, seeded

from sage import ops
from sage.ops import native, reference

CHECKOUT = Path(__file__).parents[2]
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]

needs_native = pytest.mark.skipif(native.MISSING is not None, reason=f"no extension: {native.MISSING}")


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=[1, 2], ids=lambda threads: f"{threads} threads")
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@needs_native
@pytest.mark.parametrize("case", range(20))
def test_taking_above_a_threshold_equals_the_reference(case: int, device: str, threads: int) -> None:
    n = seeded(case)
    grad_N, residual_N = draw(n), draw(n)
    threshold = random.choice([0.0, -1.0, math.nan, 1e-41, 0.5, 3.0, math.inf, 1e300])
    clear, every = random.random() < 0.5, random.choice([1, 2, 32])
    left: list[list[Tensor]] = []
    for takes in (True, False):
        x_N, r_N = grad_N.clone().to(device), residual_N.clone().to(device)
        bins = torch.zeros(ops.NUM_BINS, dtype=torch.int32, device=device)
        if takes:
            taken = ops.take_above(x_N, r_N, threshold, clear=clear, bins=bins, every=every)
        else:
            taken = reference.take_above(r_N, x_N, threshold, clear=clear, bins=bins, every=every)
        left.append([*taken, x_N, r_N, bins])
    for ours, theirs in zip(*left, strict=True):
        assert_same(ours, theirs)
    x_N = grad_N.to(device)
    at_K = reference.is_above(x_N, threshold).nonzero().view(-1)
    assert_same(ops.select_above(x_N, threshold), at_K)
    assert ops.count_above(x_N, threshold) == at_K.numel()
    assert_same(x_N, grad_N)


@needs_native
@pytest.mark.parametrize("case", range(30))
def test_taking_the_largest_equals_the_reference(case: int, device: str, threads: int) -> None:
    n = seeded(case)
    grad_N, residual_N = draw(n), draw(n)
    bounds = [0, *sorted(random.choices(range(n + 1), k=random.choice([0, 0, 3]))), n]
    density = random.choice([0.0, 0.001, 0.01, 0.1, 0.5, 1.0, random.random()])
    counts = [math.ceil(density * (b - a)) for a, b in zip(bounds, bounds[1:], strict=False)]
    low = random.choice([0.0, 1e-41, 0.1, 1.0, 2.5, math.inf, math.nan])
    near = low, low * random.choice([0.0, 1.0, 1.5, math.inf])
    left: list[list[Tensor]] = []
    for takes in (True, False):
        x_N, r_N = grad_N.clone().to(device), residual_N.clone().to(device)
        if takes:
            taken = ops.take_top(x_N, r_N, bounds, counts, clear=True, near=near)
        else:
            taken = reference.take_top(r_N, x_N, bounds, counts, clear=True)
        left.append([*taken, x_N, r_N])
    for ours, theirs in zip(*left, strict=True):
        assert_same(ours, theirs)
    x_N = grad_N.to(device)
    k = random.randint(0, n + 1)
    assert_same(ops.select_top(x_N, k), reference.select_top(x_N, k))
    assert_same(x_N, grad_N)


@needs_native
@pytest.mark.parametrize("num_ranks", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("density", [0.0, 0.001, 0.1, 1.0])
def test_the_mean_of_sparse_vectors_equals_the_reference(
    num_ranks: int, density: float, device: str, threads: int
) -> None:
    for case in range(4):
        n = seeded(7 + case)
        chosen = [
            (torch.rand(n) < density * random.random()).nonzero().view(-1).int() for _ in range(num_ranks)
        ]
        counts = [at_K.numel() for at_K in chosen]
        at_M = torch.cat(chosen).to(device)
        values_M = draw(at_M.numel()).to(device)
        zeroed = case % 2 == 0
        ours_N, theirs_N = (torch.full((n,), 0.0 if zeroed else math.nan, device=device) for _ in range(2))
        assert ops.scatter_mean(values_M, at_M, counts, ours_N, zeroed=zeroed) is ours_N
        assert_same(ours_N, reference.scatter_mean(values_M, at_M, counts, theirs_N, zeroed=zeroed))
        assert_same(ops.clear(ours_N, at_M), torch.zeros(n))


@needs_native
def test_on_a_cpu_the_indices_need_not_be_sorted() -> None:
    n = seeded(8)
    at_M, values_M = torch.randint(n, (500,), dtype=torch.int32), torch.randn(500)
    ours_N, theirs_N = torch.empty(n), torch.empty(n)
    ops.scatter_mean(values_M, at_M, [200, 300], ours_N)
    assert_same(ours_N, reference.scatter_mean(values_M, at_M, [200, 300], theirs_N, zeroed=False))


@pytest.mark.parametrize("density", [0.1, 0.01, 0.001])
def test_a_threshold_from_the_histogram_gives_the_density(density: float) -> None:
    torch.manual_seed(0)
    x_N = torch.randn(300_000) * torch.randn(300_000).exp()
    for threshold, tolerance in (
        (ops.threshold_from_histogram(ops.histogram(x_N), density), 0.02),
        (ops.threshold_from_sample(ops.sample(x_N, None, every=4), density), 0.3),
    ):
        assert ops.count_above(x_N, threshold) / x_N.numel() == pytest.approx(density, rel=tolerance)


def test_a_threshold_from_an_empty_histogram_selects_nothing() -> None:
    assert ops.threshold_from_histogram(ops.histogram(torch.empty(0)), 0.1) == math.inf


def in_another_process(code: str) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join((str(CHECKOUT), str(Path(__file__).parent), str(CHECKOUT / "tests")))
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


F = torch.randn(8)
H = F.half()
AT = torch.arange(8, dtype=torch.int32)
B = torch.zeros(4, dtype=torch.uint8)
ONES = torch.ones(2, 2)
PARTS = torch.tensor([0, 3, 8], dtype=torch.int32)
TWOS = torch.full((4,), 2, dtype=torch.int32)
CHUNKS = torch.tensor([[0, 64, 8, 0], [3, 64, 5, 2]], dtype=torch.int32)
REFUSED: list[tuple[str, tuple[Any, ...], str]] = [
    ("select_", (F.double(), None, 1.0, True, False, None, 1), "signal has another dtype: expected float32"),
    ("select_", (F[::2], None, 1.0, True, False, None, 1), "signal is not contiguous"),
    ("select_", (F.view(2, 4), None, 1.0, True, False, None, 1), "signal has 2 dimensions"),
    ("select_", (F, F[:4], 1.0, True, False, None, 1), "grad has 4 elements and signal 8"),
    ("select_", (F, F, 1.0, True, False, None, 1), "grad and signal are one vector"),
    ("select_", (F, None, 1.0, True, False, AT, 1), "histogram has 8 bins: expected 16384"),
    ("select_", (F, None, 1.0, True, False, None, 0), "every=0: expected 1 or more"),
    ("select_", (torch.empty(1).expand(2**31), None, 1.0, True, False, None, 1), "not contiguous"),
    ("top_", (F, None, [0, 8], [9], True, False), "counts: 9 to take of a group of 8"),
    ("top_", (F, None, [0, 7], [1], True, False), "bounds: expected one more than counts, from 0 to 8"),
    ("top_", (F, None, [0, 9, 8], [1, 0], True, False), "bounds: expected them to ascend"),
    ("count_above", (AT, 1.0), "x has another dtype"),
    ("select_groups_", (F, None, [0, 8], [1.0, 2.0], True), "thresholds: expected 1, one for each group"),
    ("ranked_moments_", (F, None, [0, 3, 8], [1, 1, 1]), "ranks: expected as many for each of 2 groups"),
    ("ranked_moments_", (F, None, [0, 8], [9]), "ranks: 9 of a group of 8"),
    ("ranked_moments_", (F, None, [0, 9, 8], []), "bounds: expected them to ascend"),
    ("moments_above_", (F, None, [0, 8], []), "limits: expected 1, one for each group"),
    ("sampled", (F, None, [0, 8], [9], [1], AT), "sizes: 9 of a group of 8"),
    ("sampled", (F, None, [0, 8], [8], [0], AT), "ranks: 0 of 8 elements"),
    ("sampled", (F, None, [0, 8], [7], [1], AT), "draws has 8 elements: expected 7"),
    ("sampled", (F, None, [0, 8], [8], [1], AT - 1), "draws: -1 is not from 0 to 65535"),
    ("scatter_mean_", (F, F, AT.long(), [8], False), "indices has another dtype: expected int32"),
    ("scatter_mean_", (F, F, AT, [7], False), "counts come to 7; there are 8 values"),
    ("scatter_mean_", (F, F, AT, [9, -1], False), "counts: -1 of a rank"),
    ("scatter_mean_", (F, F[:0], AT[:0], [], False), "one rank or more"),
    ("scatter_mean_", (F[:7].clone(), F, AT, [8], False), "expected all from 0 up to 6"),
    ("clear_", (F, AT - 1), "expected all from 0 up to 7"),
    ("pack", (B, 9), "bits=9: expected 1 to 8"),
    ("unpack", (B, 2, 17), "4 bytes: expected 5 for 17 codes of 2 bits"),
    ("cast_share_", (F, F, None, 2), "share has another dtype: expected float16 or bfloat16"),
    ("cast_share_", (H, F.double(), None, 2), "grad has another dtype: expected float32"),
    ("cast_share_", (H, F[:4], None, 2), "grad has 4 elements: expected as many in share and residual"),
    ("cast_share_", (H, F, F, 2), "grad and residual are one vector"),
    ("cast_share_", (H, F, None, 0), "world_size=0: expected 1 or more"),
    ("sum_casts_", (F, F), "out has another dtype: expected float16 or bfloat16"),
    ("sum_casts_", (H, H.bfloat16()), "rows has another dtype: expected float16"),
    ("widen_", (F, F), "x has another dtype: expected float16 or bfloat16"),
    ("widen_", (F[:7], H), "out has 7 elements and x 8"),
    ("sum_casts_", (H[:3], H), "rows has 8 elements: expected one row or more of 3"),
    ("momentum_signs_", (F[:7], F, 0.9), "momentum has 7 elements: expected 8"),
    ("momentum_signs_", (F, F, 0.9), "momentum and signal are one vector"),
    (
        "quantise_mean_",
        (F, None, B.view(1, 4).repeat(1, 2), F[:1].view(1, 1), [0, 8], 8, 3, 7, 2, B, F[:1]),
        "codec=3, bucket=8: expected a codec of 0 to 2, and buckets of at most 16384",
    ),
    (
        "quantise_mean_",
        (F, None, B.view(1, 4).repeat(1, 2), F[:1].view(1, 1), [0, 8], 8, 0, 1, 2, B, F[:1]),
        "out_bytes has 4 elements: expected 8",
    ),
    ("take_near_", (F, None, [7], [2], 1.0, False, False), "stops: expected the last to be 8"),
    ("take_near_", (F, None, [8], [2, 2], 1.0, False, False), "stops has 1 layers and lengths 2"),
    (
        "take_near_",
        (F, None, [8], [0], 1.0, False, False),
        "lengths: 0 elements in a bin: expected",
    ),
    ("encode_bins_", (None, AT, F, AT[:4], F[:1], [8], [2]), "counts: expected a sum of 8"),
    (
        "encode_bins_",
        (None, AT, F, TWOS, F, [8], [2]),
        "scales has 8 elements: expected one for each",
    ),
    (
        "encode_bins_",
        (None, AT - 1, F, TWOS, F[:1], [8], [2]),
        "as many in each bin as counts says",
    ),
    ("decode_bins", (B, F[:1], [8], [2]), "bytes: not those of 4 bins"),
    ("hadamard_", (F, [0, 8], 24, 1, False), "bucket=24: expected a power of two from 16 to 8192"),
    ("hadamard_", (F, [0, 7], 16, 1, False), "bounds: expected them from 0 to 8"),
    ("largest_of_blocks_", (F, None, [0, 8], 0), "block=0: expected 1 element or more"),
    ("largest_of_blocks_", (F, None, [0, 7], 4), "bounds: expected them from 0 to 8"),
    ("quantise_integers_", (F, PARTS, F[:3], [0, 1], 1, [0], [0], 1, True, True), "bounds has 3 elements"),
    (
        "quantise_integers_",
        (F[:7], PARTS, F[:2], [0, 1], 1, [0], [0], 1, True, True),
        "bounds: expected them",
    ),
    ("quantise_integers_", (F, PARTS, F[:2], [0, 256], 1, [0], [0], 1, True, True), "levels: expected two"),
    ("quantise_integers_", (F, PARTS, F[:2], [0, 3, 3], 1, [0], [0], 1, True, True), "levels: .* to ascend"),
    ("quantise_integers_", (F, PARTS, F[:2], [0, 1], 1, [0], [0], 0, True, True), "shares=0: expected 1"),
    ("sum_integers", (B[:2].view(2, 1), [0, 1], 9), "expected a contiguous matrix of rows of 2 elements"),
    ("average_integers_", (F, B[:2].view(2, 1), 3, PARTS, F[:2], 7, 1), "a contiguous matrix of rows of 2"),
    ("average_integers_", (F, B[:2].view(2, 1), 2, PARTS, F[:2], 256, 1), "most=256: expected 1 to 255"),
    ("encode_tensor_scales", (F, [0, 7]), "bounds: expected them from 0 to 8"),
    ("decode_tensor_scales", (B, [0, 1]), "bytes has 4 elements: expected 5"),
    ("decode_tensor_scales", (B, [0, 3, 0]), "bounds: expected them to ascend"),
    ("keep_error_", (F, F[:7]), "sent has 7 elements: expected 8"),
    ("keep_error_", (F, F), "signal and sent are one vector"),
    ("write_product_", (F, None, F, F, 0), "rank: 0: expected 1 or more"),
    ("write_product_", (F, None, F[:3], F[:4], 2), "left has 3 elements: expected a multiple of rank 2"),
    ("write_product_", (F, None, F[:4], F[:3], 2), "right has 3 elements: expected a multiple of rank 2"),
    ("write_product_", (F, None, F[:4], F[:4], 2), "out has 8 elements: expected 4"),
    ("write_product_", (F, F[:4], F[:4], F[:4], 1), "out has 8 elements: expected 16"),
    ("write_product_", (F, F[:7], F[:2], F[:4], 1), "signal has 7 elements: expected 8"),
    ("write_product_", (F, F, F[:2], F[:4], 1), "signal and out are one vector"),
    (
        "thin_product_",
        (F, None, F, 0, 1, False),
        "rows: 0: expected 1 or more that divide the 8 elements of matrix",
    ),
    ("thin_product_", (F, None, F[:4], 2, 0, False), "rank: 0: expected 1 or more"),
    ("thin_product_", (F, None, F[:2], 2, 1, False), "basis has 2 elements: expected 4"),
    ("thin_product_", (F, F[:7], F[:4], 2, 1, False), "grad has 7 elements: expected 8"),
    ("thin_product_", (F, None, F[:4], 2, 1, True), "basis has 4 elements: expected 2"),
    ("largest_of_chunks", (F, CHUNKS.long(), 3), "chunks has another dtype: expected int32"),
    ("largest_of_chunks", (F, CHUNKS[:, :3], 3), "chunks: expected a contiguous matrix of rows of 4"),
    ("largest_of_chunks", (F, CHUNKS[:0], 3), "chunks: expected the positions of the first to begin at 0"),
    ("largest_of_chunks", (F, CHUNKS[1:], 3), "chunks: expected the positions of the first to begin at 0"),
    ("largest_of_chunks", (F, CHUNKS, 8), "chunks: 6 to take of the 5 elements of chunk 1"),
    ("largest_of_chunks", (F, CHUNKS, 1), "chunks: -1 to take of the 5 elements of chunk 1"),
    (
        "largest_of_chunks",
        (F[:7].clone(), CHUNKS, 3),
        "chunk 0 is elements 0 to 7: expected them from 0",
    ),
    ("largest_of_chunks", (F, CHUNKS - (AT[:4] == 0).int(), 3), "chunk 0 is elements -1 to 6: expected"),
    ("largest_of_chunks", (F, CHUNKS - (AT[:4] == 1).int(), 3), "chunks: 63 elements from row to row of"),
    ("largest_of_chunks", (F, CHUNKS * (AT[:4] != 2), 3), "0 elements of chunk 0: expected 1 to 4096"),
    ("take_at_", (F, None, AT - 1, False), "indices: expected all from 0 up to 7"),
    ("take_at_", (F, None, AT.long(), False), "indices has another dtype: expected int32"),
    ("unite", (AT, 7), "indices: expected all from 0 up to 6"),
    ("is_among", (AT, AT - 1, 8), "others: expected all from 0 up to 7"),
    ("draw_indices", (F, [0, 8], [9], [0], 1, True), "counts: 9 to take of a group of 8"),
    ("draw_indices", (F, [0, 8], [1], [], 1, True), "numbers: expected as many as counts"),
    ("draw_indices", (F, [0, 8], [1], [-1], 1, True), "numbers: -1: expected 0 to 2"),
    ("encode_elias", (F, [0, 8]), "levels has another dtype: expected int32"),
    ("encode_elias", (AT, [0, 7]), "bounds: expected them from 0 to 8"),
    ("encode_elias", (AT - 2**31, [0, 8]), "a magnitude of 2,147,483,648: expected at most 2,147,483,647"),
    ("decode_elias_", (F, AT, AT[:2], [0, 8]), "bits has 2 elements: expected 1"),
    ("decode_elias_", (F, AT, AT[7:], [0, 8]), "words: not the Elias streams of 1 groups with 8 elements"),
    ("decode_elias_", (AT, AT, AT[7:], [0, 8]), "out has another dtype: expected float32"),
    ("encode_gaps", (AT.flip(0),), "expected each to be above the one before it"),
    ("encode_bitmap", (AT, 7), "expected all from 0 up to 6"),
]


@needs_native
@pytest.mark.parametrize(
    ("op", "given", "why"), REFUSED, ids=lambda part: part if isinstance(part, str) else ""
)
def test_an_op_refuses_unsupported_inputs_with_the_reason(op: str, given: tuple[Any, ...], why: str) -> None:
    with pytest.raises(RuntimeError, match=why):
        getattr(torch.ops.sage, op)(*given)


@needs_native
def test_more_elements_than_int32_can_index_are_refused() -> None:
    # Two to the 31 bytes of address space, none of which is touched.
    codes_N = torch.empty(2**31, dtype=torch.uint8)
    with pytest.raises(RuntimeError, match="has 2147483648 elements: at most 2147483647"):
        torch.ops.sage.pack(codes_N, 1)


ASKED: list[tuple[str, tuple[Any, ...]]] = [
    ("select_", (F.clone(), F.clone(), 1.0, True, True, torch.zeros(ops.NUM_BINS, dtype=torch.int32), 2)),
    ("top_", (F.clone(), F.clone(), [0, 3, 8], [1, 2], True, False)),
    ("count_above", (F.clone(), 1.0)),
    ("select_groups_", (F.clone(), F.clone(), [0, 3, 8], [0.5, 1.0], True)),
    ("ranked_moments_", (F.clone(), F.clone(), [0, 3, 8], [1, 2, 4, 5])),
    ("moments_above_", (F.clone(), F.clone(), [0, 3, 8], [0.5, 1.0])),
    ("excess_", (F.abs(), 0.5)),
    ("sampled", (F.clone(), F.clone(), [0, 3, 8], [1, 3], [1, 2], AT[:4].clone())),
    ("histogram_", (torch.zeros(ops.NUM_BINS, dtype=torch.int32), F.clone(), 1)),
    ("scatter_mean_", (F.clone(), F.clone(), AT.clone(), [3, 5], False)),
    ("clear_", (F.clone(), AT.clone())),
    ("pack", (B.clone(), 3)),
    ("unpack", (B.clone(), 3, 10)),
    ("cast_share_", (H.clone(), F.clone(), F.clone(), 2)),
    ("sum_casts_", (H[:4].clone(), H.clone())),
    ("widen_", (F.clone(), H.clone())),
    ("random_bits_", (AT.clone(), 7, 3)),
    ("sign_bits_", (F.clone(), [0, 3, 8], F[:2].clone(), F[:2].clone(), True)),
    ("momentum_signs_", (F.clone(), F.clone(), 0.9)),
    (
        "mean_signs_",
        (F.clone(), B[:2].clone().view(2, 1), torch.ones(2, 2), torch.ones(2, 2), [0, 3, 8], 2, True, False),
    ),
    ("quantise_", (F.clone(), F.clone(), [0, 3, 8], 2, 3, 7, 3, None, None, 5, [0, 3], [1, 9], True)),
    (
        "quantise_mean_",
        (
            *(F.clone(), F.clone(), torch.zeros(2, 8, dtype=torch.uint8), torch.ones(2, 5), [0, 3, 8], 2, 0),
            *(1, 3, torch.zeros(8, dtype=torch.uint8), torch.ones(5)),
        ),
    ),
    ("average_", (F.clone(), B[:2].view(1, 2).repeat(2, 2), torch.ones(2, 5), [0, 3, 8], 2, 3, 7, 2, False)),
    ("sign_words", (B[:1].clone(), [0, 3, 8], False)),
    ("sign_bytes", (AT[:4].clone().view(2, 2), [0, 3, 8], False)),
    ("statistics_", (F.clone(), F.clone(), [0, 3, 8], 1)),
    ("take_near_", (F.clone(), F.clone(), [3, 8], [2, 2], 1.0, True, False)),
    ("encode_bins_", (F.clone(), AT.clone(), F.clone(), TWOS, F[:2].clone(), [8, 8], [2, 2])),
    ("decode_bins", (B.clone() + 2, F[:1].clone(), [8], [2])),
    ("hadamard_", (F.clone(), [0, 3, 8], 16, 7, False)),
    ("largest_of_blocks_", (F.clone(), F.clone(), [0, 3, 8], 2)),
    ("quantise_integers_", (F.clone(), PARTS, F[:2].clone(), [0, 2, 3], 5, [0], [0], 3, True, True)),
    ("sum_integers", (B[:2].clone().view(2, 1), [0, 2, 3], 4)),
    ("average_integers_", (F.clone(), B[:2].clone().view(2, 1), 2, PARTS, F[:2].clone(), 3, 1)),
    ("encode_tensor_scales", (F.abs(), [0, 3, 8])),
    ("decode_tensor_scales", (torch.zeros(16, dtype=torch.uint8), [0, 3, 8])),
    ("keep_error_", (F.clone(), F.clone())),
    ("write_product_", (F.clone(), F.clone(), F[:4].clone(), F[:8].clone(), 2)),
    ("thin_product_", (F.clone(), None, F[:4].clone(), 4, 2, False)),
    ("thin_product_", (F.clone(), F.clone(), F.clone(), 4, 2, True)),
    ("largest_of_chunks", (F.clone(), CHUNKS.clone(), 3)),
    ("take_at_", (F.clone(), F.clone(), AT[:3].clone(), True)),
    ("unite", (AT.clone(), 8)),
    ("is_among", (AT.clone(), AT[:3].clone(), 8)),
    ("draw_indices", (F.clone(), [0, 3, 8], [1, 2], [0, 1], 7, True)),
    ("encode_elias", (AT.clone(), [0, 3, 8])),
    ("decode_elias_", (F.clone(), torch.full((1,), -1, dtype=torch.int32), TWOS[:1] + 1, [0, 8])),
    ("encode_gaps", (AT.clone(),)),
    ("decode_gaps", (B.clone(), 4)),
    ("encode_bitmap", (AT.clone(), 9)),
    ("decode_bitmap", (B.clone() + 1,)),
]


@needs_native
def test_every_op_passes_torchs_opcheck(device: str) -> None:
    # In its own process: opcheck runs autograd, after which processes forked from this one could not.
    code = (
        "import torch; from test_native import ASKED\n"
        "for op, given in ASKED:\n"
        f"    there = [x.to({device!r}) if isinstance(x, torch.Tensor) else x for x in given]\n"
        "    print(op); torch.library.opcheck(getattr(torch.ops.sage, op).default, there)"
    )
    done = in_another_process(code)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.split() == [op for op, _ in ASKED]


@needs_native
def test_every_op_is_checked() -> None:
    assert {op for op, _ in ASKED} == set(native.OPS)


@needs_native
def test_an_op_that_an_older_extension_lacks_is_named_and_runs_in_plain_torch() -> None:
    code = (
        "import torch; from sage.ops import native; native.register('later_', lambda x: None); "
        "print(native.takes('later_', torch.ones(2)), 'later_' in native.on('CPU'))"
    )
    done = in_another_process(code)
    assert done.stdout == "False False\n", done.stderr
    assert done.stderr.startswith("the native extension lacks later_, which runs in plain torch: ")


def test_without_the_extension_one_line_is_printed_and_everything_runs() -> None:
    code = (
        "import torch; from sage import ops; ops.native.MISSING = 'it is not built'; "
        "print(ops.take_top(torch.tensor([1., -3.]), None, [0, 2], [1]), ops.count_above(torch.ones(2), 1.))"
    )
    done = in_another_process(code)
    assert done.stdout.startswith("(tensor([-3.]), tensor([1], dtype=torch.int32)) 2")
    (line,) = done.stderr.splitlines()
    assert line == (
        "no native extension; sage.ops runs in plain torch, several times slower: it is not built"
    )


def test_without_the_extension_the_line_has_the_build_command_for_this_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("SAGE_NATIVE", raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr(native, "OLDEST_TORCH", (2, 0))
    command = f"cd {shlex.quote(str(CHECKOUT))} && {shlex.quote(sys.executable)} setup.py build_ext --inplace"
    assert native._load() == f"it was not built: `{command}` with a C++ compiler builds it"
    helped = subprocess.run(["sh", "-c", f"{command} --help"], capture_output=True, text=True, check=True)
    assert "--inplace" in helped.stdout  # setup.py knows what the command asks for
