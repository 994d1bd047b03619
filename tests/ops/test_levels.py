"""Tests of the quantisation kernels against their references, bitwise; unbiasedness; extreme scales."""
# N = elements of the vector, P = buckets, W = payloads

import math
import random

import pytest
import torch
from vectors import assert_same, draw, team

from sage import ops
from sage.ops import Codec, Coding, Positions, native, reference_levels

needs_native = pytest.mark.skipif(native.MISSING is not None, reason=f"no extension: {native.MISSING}")

GROUPS = [0, 1, 5, 16, 33, 128, 129, 1000, 5000, 40_000, 140_001]
CODINGS = [
    *(
        Coding(codec, bucket=bucket)
        for codec in (Codec.INT8, Codec.E4M3, Codec.E5M2)
        for bucket in (256, 7, None)
    ),
    *(Coding(Codec.LINEAR, levels, bucket) for levels in (1, 2, 7, 15, 127) for bucket in (128, 50, None)),
    *(Coding(Codec.NATURAL, levels, bucket) for levels in (1, 2, 8, 31) for bucket in (128, None)),
    Coding(Codec.POWER8),
    Coding(Codec.POWER9),
    Coding(Codec.E2M1, bucket=16),
    *(Coding(Codec.TREE, bucket=bucket) for bucket in (50, None)),
]


def seeded(case: int) -> list[int]:
    """Seed both generators and return the sizes of the case's groups."""
    random.seed(case)
    torch.manual_seed(case)
    return [random.choice(GROUPS) for _ in range(random.randint(0, 4))]


def placed(n: int) -> Positions:
    """Draw positions of n elements: those of a whole vector, of a part of one, or of several parts."""
    starts = (0, *sorted(random.randint(0, n) for _ in range(random.choice([0, 0, 1, 40]))))
    return Positions(starts, tuple(random.choice([0, 5, 128, 1000, 2**40 + 77]) for _ in starts))


@needs_native
@pytest.mark.parametrize("coding", CODINGS, ids=str)
def test_codes_and_residuals_equal_the_reference(coding: Coding) -> None:
    for case in range(6):
        sizes = seeded(case + 100 * coding.levels)
        norm = random.choice([ops.Kind.LARGEST, ops.Kind.SQUARES])
        key, positions = random.getrandbits(63), placed(sum(sizes))
        runs = positions.starts, positions.firsts
        grad_N, residual_N = draw(sum(sizes)), draw(sum(sizes))
        theirs_N = residual_N.clone()
        with team(1 + case % 2):
            theirs = reference_levels.quantise(
                theirs_N, grad_N.clone(), sizes, coding, int(norm), key, *runs, keep=True
            )
            expected = reference_levels.quantise(
                grad_N, None, sizes, coding, int(norm), key, *runs, keep=False
            )
        for threads in (1, 2):
            ours_N = residual_N.clone()
            with team(threads):
                ours = ops.quantise(grad_N, ours_N, sizes, coding, norm=norm, key=key, positions=positions)
                again = ops.quantise(grad_N, None, sizes, coding, norm=norm, key=key, positions=positions)
            for left, right in zip((*ours, ours_N, *again), (*theirs, theirs_N, *expected), strict=True):
                assert_same(left, right)


@needs_native
@pytest.mark.parametrize("coding", CODINGS, ids=str)
def test_the_mean_of_payloads_equals_the_reference(coding: Coding) -> None:
    for case in range(6):
        sizes = seeded(case + 100 * coding.levels)
        num = random.randint(1, 4)
        rows = [ops.quantise(draw(sum(sizes)), None, sizes, coding, key=w) for w in range(num)]
        bytes_WB, scale_WP = torch.stack([row[0] for row in rows]), torch.stack([row[1] for row in rows])
        bytes_WB[-1].random_(0, 256)  # codes that no element becomes are read too
        if scale_WP.numel():
            scale_WP.view(-1)[0] = random.choice([math.nan, math.inf, 0.0, 1e-44, 3e38])
        before_N, added = draw(sum(sizes)), case % 2 == 0
        means = []
        for average, threads in (
            (reference_levels.average, 1 + case // 2 % 2),
            (ops.average, 1),
            (ops.average, 2),
        ):
            means.append(before_N.clone())
            with team(threads):
                average(means[-1], bytes_WB, scale_WP, sizes, coding, divisor=num, added=added)
            assert_same(means[-1], means[0])


@needs_native
@pytest.mark.parametrize("codec", [Codec.INT8, Codec.E4M3, Codec.E5M2])
@pytest.mark.parametrize("bucket", [1, 7, 256, 9000])
def test_the_code_of_a_mean_equals_the_reference(
    codec: Codec, bucket: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    coding = Coding(codec, bucket=bucket)
    for case in range(12):
        sizes = seeded(case + 100 * bucket)
        n, num, payloads = sum(sizes), coding.num_buckets(sizes), random.randint(0, 3)
        divisor = random.randint(1, 5) if payloads else 1
        grad_N, residual_N = draw(n) if case % 3 else None, draw(n) * random.choice([1e-40, 1.0, 1e30])
        bytes_WB = torch.randint(256, (payloads, n), dtype=torch.uint8)
        scale_WP = torch.randn(payloads, num)
        if scale_WP.numel():
            scale_WP.view(-1)[0] = random.choice([math.nan, math.inf, 0.0, 1e-44, 3e38])
        found = []
        for threads in (0, 1, 2):  # 0: in plain torch
            signal_N, out = residual_N.clone(), (torch.empty(n, dtype=torch.uint8), torch.empty(num))
            with team(threads or 1), monkeypatch.context() as patched:
                if threads == 0:
                    patched.setattr(native, "MISSING", "SAGE_NATIVE=0")
                parts = ops.quantise_mean(
                    grad_N, signal_N, bytes_WB, scale_WP, sizes, coding, divisor=divisor, out=out
                )
            found.append((signal_N, *parts, *out))
        for ours in found[1:]:
            for left, right in zip(ours, found[0], strict=True):
                assert_same(left, right)


@needs_native
@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("coding", [Coding(Codec.LINEAR, 7, 128), Coding(Codec.INT8, bucket=256)], ids=str)
def test_the_mean_of_a_vector_longer_than_the_caches_equals_the_reference(coding: Coding, first: int) -> None:
    torch.manual_seed(first)
    sizes = [1000, 2**20 + 16, 21]
    bytes_WB = torch.randint(256, (2, coding.num_bytes(sum(sizes))), dtype=torch.uint8)
    scale_WP = torch.randn(2, coding.num_buckets(sizes))
    means = [torch.empty(first + sum(sizes))[first:] for _ in range(2)]
    for out_N, of in zip(means, (ops, reference_levels), strict=True):
        of.average(out_N, bytes_WB, scale_WP, sizes, coding, divisor=2, added=False)
    assert_same(*means)


@needs_native
@pytest.mark.parametrize(
    "coding", [Coding(Codec.LINEAR, 1), Coding(Codec.INT8, bucket=64), Coding(Codec.E2M1, bucket=32)], ids=str
)
def test_codes_of_given_scales_equal_the_reference(coding: Coding) -> None:
    for case in range(8):
        sizes = seeded(case)
        signal_N = draw(sum(sizes))
        num = coding.num_buckets(sizes)
        scale_P, limit_P = torch.rand(num) * 3, torch.rand(num) * 3
        if num:
            scale_P[0] = random.choice([math.nan, math.inf, 0.0, 1.0])
        for keep in (False, True):
            theirs_N = signal_N.clone()
            with team(1 + case % 2):
                theirs_B = reference_levels.quantise_to(
                    theirs_N, sizes, coding, scale_P, limit_P, 5, (0,), (0,), keep=keep
                )
            for threads in (1, 2):
                ours_N = signal_N.clone()
                with team(threads):
                    ours_B = ops.quantise_to(
                        ours_N, sizes, coding, scale_P, limit_P=limit_P, key=5, keep=keep
                    )
                assert torch.equal(ours_B, theirs_B)
                assert_same(ours_N, theirs_N)


@pytest.mark.parametrize("is_native", [pytest.param(True, marks=needs_native), False])
@pytest.mark.parametrize(
    "coding", [coding for coding in CODINGS if Codec.LINEAR <= coding.codec <= Codec.POWER9], ids=str
)
def test_parts_of_a_vector_have_the_codes_that_they_have_in_it(
    coding: Coding, is_native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not is_native:
        monkeypatch.setattr(native, "MISSING", "SAGE_NATIVE=0")
    coding = Coding(coding.codec, coding.levels)
    for case in range(4):
        random.seed(case)
        torch.manual_seed(case)
        n = random.choice([1, 100, 500, 3000])
        x_N = torch.rand(n) * 2 - 1
        whole_N = codes(x_N, coding, Positions())
        stops = [0, *sorted(random.choices(range(n + 1), k=random.choice([1, 3, 30]))), n]
        places = list(zip(stops, stops[1:], strict=False))
        random.shuffle(places)
        for parts in (places[: len(places) // 2], places[len(places) // 2 :]):
            starts = [sum(b - a for a, b in parts[:index]) for index in range(len(parts))] or [0]
            positions = Positions(tuple(starts), tuple(a for a, _ in parts) or (0,))
            part_N = torch.cat([x_N[:0], *(x_N[a:b] for a, b in parts)])
            expected_N = torch.cat([whole_N[:0], *(whole_N[a:b] for a, b in parts)])
            assert torch.equal(codes(part_N, coding, positions), expected_N)


def codes(x_N: torch.Tensor, coding: Coding, positions: Positions) -> torch.Tensor:
    """The code of each element, for a scale of 1."""
    codes_B = ops.quantise_to(
        x_N, [x_N.numel()], coding, torch.ones(1), key=3, positions=positions, keep=False
    )
    return ops.unpack(codes_B[: -(-x_N.numel() * coding.bits // 8)], coding.bits, x_N.numel())


@pytest.mark.parametrize("scale", [1e-44, 1e-38, 1.0, 1e20, 3e38])
@pytest.mark.parametrize("coding", CODINGS, ids=str)
def test_an_error_is_at_most_the_distance_of_two_levels(coding: Coding, scale: float) -> None:
    torch.manual_seed(0)
    x_N = (torch.rand(1000) * 2 - 1) * scale
    mean_N = torch.empty(1000)
    bytes_B, scale_P = ops.quantise(x_N, None, [600, 400], coding, key=1)
    ops.average(mean_N, bytes_B[None], scale_P[None], [600, 400], coding, divisor=1)
    relative = {Codec.INT8: 0.51 / 127, Codec.E4M3: 2**-4, Codec.E5M2: 2**-3, Codec.LINEAR: 1 / coding.levels}
    relative |= {Codec.E2M1: 1 / 8, Codec.TREE: 0.00704}
    allowed_N = torch.full((1000,), relative.get(coding.codec, 0.0) * scale)
    if coding.codec not in relative:
        lowest = 2.0 ** (1 - coding.levels) * scale if coding.codec is Codec.NATURAL else 2.0**-126
        allowed_N = torch.maximum(x_N.abs(), torch.tensor(lowest))
    tiny = 2 * 1.5e-45 * max(1, 127 if scale < 1e-37 else 1)  # steps below the smallest float are rounded
    assert bool(((mean_N - x_N).abs() <= allowed_N * 1.001 + tiny).all())


@pytest.mark.parametrize(
    "coding",
    [
        Coding(Codec.LINEAR, 1),
        Coding(Codec.LINEAR, 7, 128),
        Coding(Codec.NATURAL, 3),
        Coding(Codec.POWER8),
        Coding(Codec.POWER9),
    ],
    ids=str,
)
def test_random_rounding_is_unbiased(coding: Coding) -> None:
    torch.manual_seed(0)
    x_N = torch.randn(512)
    num, sum_N, square_N, mean_N = 4000, torch.zeros(512), torch.zeros(512), torch.empty(512)
    for key in range(num):
        bytes_B, scale_P = ops.quantise(x_N, None, [512], coding, key=key)
        ops.average(mean_N, bytes_B[None], scale_P[None], [512], coding, divisor=1)
        sum_N += mean_N
        square_N += (mean_N - x_N) ** 2
    deviation_N = (square_N / num).sqrt() / math.sqrt(num)
    assert bool(((sum_N / num - x_N).abs() <= 5 * deviation_N.max() + 2.0**-16 * x_N.abs().max()).all())
